//! Passes that share one walk over the recipe: each yields what it yields alone.
//!
//! Rows are data; [`check`] is the one place that computes. Every sequence has two caches on one device, one that only
//! passes alone extend and one that batches extend, and both see the same tokens.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[allow(dead_code)]
mod gpu;

use calora::Error;
use calora::adapter::Tail;
use calora::arch::Recipe;
use calora::cpu::{CpuDevice, CpuOptions, Simd};
use calora::device::{Activations, Answer, CacheId, Device, Forward, Model, TailId, Want};
use calora::quant::Bits::{Int2, Int3, Int4, Int8};
use calora::weights::DType;
use common::{Random, Store, nmse, random_model, random_tail, scheme, small_config};
use gpu::{VARIANTS, Variant, open};

const STORES: [Store; 6] = [
    Store::F32,
    Store::BF16,
    scheme(Int4, Some(32), true),
    scheme(Int8, Some(32), false),
    scheme(Int3, Some(32), true),
    scheme(Int2, Some(32), true),
];

/// What a batch may differ by from passes alone.
#[derive(Clone, Copy, Debug)]
enum Bound {
    /// Not a bit.
    Same,
    /// A normalised mean squared error of the logits of 1e-9, and no token.
    Close,
}

impl Bound {
    fn holds(self, together: &Answer, alone: &Answer, case: &str) {
        match (self, together, alone) {
            (Self::Close, Answer::Logits(together), Answer::Logits(alone)) => {
                let error = nmse(together, alone);
                assert!(error <= 1e-9, "{case}: NMSE {error:e}");
            }
            _ => assert_eq!(together, alone, "{case}"),
        }
    }
}

/// No adapter, LoRA, base recovery with LoRA, GELU recovery alone, and one that leaves linears out, of a high rank.
fn tails(recipe: &Recipe) -> Vec<Vec<Tail>> {
    let lora = random_tail(recipe, 3, 0, DType::F32, 11);
    let recovery = random_tail(recipe, 0, 4, DType::F32, 12);
    let mut sparse = random_tail(recipe, 17, 2, DType::F16, 13);
    sparse.branches.iter_mut().step_by(2).for_each(Vec::clear);
    vec![vec![], vec![lora.clone()], vec![recovery.clone(), lora], vec![recovery], vec![sparse]]
}

/// One sequence: its adapter with a scale, and its two caches.
struct Sequence {
    tail: Option<TailId>,
    scales: Vec<f32>,
    alone: CacheId,
    together: CacheId,
    position: usize,
}

fn sequences(device: &mut dyn Device, recipe: &Recipe, order: &[usize]) -> Vec<Sequence> {
    let lists = tails(recipe);
    let mut load = |tails: &Vec<Tail>| {
        let tails: Vec<&Tail> = tails.iter().collect();
        (!tails.is_empty()).then(|| device.load_tails(&tails).unwrap())
    };
    let tails: Vec<Option<TailId>> = lists.iter().map(&mut load).collect();
    order
        .iter()
        .enumerate()
        .map(|(place, i)| Sequence {
            tail: tails[*i],
            // In larger batches the same adapter acts more and less strongly, and not at all.
            scales: match order.len() {
                ..=4 => Vec::new(),
                _ => (0..lists[*i].len()).map(|of| [1.0, 0.5, 0.0, 2.0][(place + of) % 4]).collect(),
            },
            alone: device.create_cache(200).unwrap(),
            together: device.create_cache(200).unwrap(),
            position: 0,
        })
        .collect()
}

/// Advances sequences alone and then as a batch; the answers of both.
fn step(
    device: &mut dyn Device,
    sequences: &mut [&mut Sequence],
    work: &[(Vec<u32>, Want)],
) -> (Vec<Answer>, Vec<Answer>) {
    let mut alone = Vec::new();
    for (s, (tokens, want)) in sequences.iter().zip(work) {
        let Sequence { tail, scales, alone: cache, position, .. } = &**s;
        let (position, cache, tail, want) = (*position, *cache, *tail, *want);
        alone.push(device.forward(&Forward { tokens, position, cache, tail, scales, want }).unwrap());
    }
    let passes: Vec<Forward<'_>> = sequences
        .iter()
        .zip(work)
        .map(|(s, (tokens, want))| Forward {
            tokens,
            position: s.position,
            cache: s.together,
            tail: s.tail,
            scales: &s.scales,
            want: *want,
        })
        .collect();
    let together = device.forward_batch(&passes).unwrap();
    for (s, (tokens, _)) in sequences.iter_mut().zip(work) {
        s.position += tokens.len();
    }
    (together, alone)
}

/// Prompts of different lengths, then steps of decoding in which sequences come and go.
fn check(device: &mut dyn Device, recipe: &Recipe, order: &[usize], bound: Bound, case: &str) {
    let mut random = Random(order.len() as u64);
    let mut token = || random.below(recipe.shape.vocab) as u32;
    let mut all = sequences(device, recipe, order);
    // One prompt is past the first tile of positions, so that spans and tiles differ between sequences.
    let prompts: Vec<(Vec<u32>, Want)> = (0..order.len())
        .map(|i| ((0..1 + 5 * i % 17).map(|_| token()).collect(), Want::LastLogits))
        .collect();
    for (s, work) in all.iter_mut().zip(&prompts) {
        let (together, alone) = step(device, &mut [s], std::slice::from_ref(work));
        assert_eq!(together, alone, "{case}: a batch of one is the pass alone");
    }
    let wants = [Want::LastLogits, Want::Argmax, Want::AllLogits, Want::Nothing];
    for round in 0..5 {
        // The second ends after two rounds, the first after four.
        let mut live: Vec<&mut Sequence> = all
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| order.len() == 1 || !(*i == 1 && round >= 2 || *i == 0 && round >= 4))
            .map(|(_, s)| s)
            .collect();
        let work: Vec<_> = (0..live.len())
            // The last round has a prompt's chunk among the tokens.
            .map(|i| {
                let tokens = if round == 4 && order.len() > 4 && i == live.len() / 2 { 7 } else { 1 };
                ((0..tokens).map(|_| token()).collect(), wants[(round + i) % 4])
            })
            .collect();
        let (together, alone) = step(device, &mut live, &work);
        for (i, (t, a)) in together.iter().zip(&alone).enumerate() {
            bound.holds(t, a, &format!("{case}, round {round}, row {i} {:?}", work[i].1));
        }
    }
    for s in all {
        device.drop_cache(s.alone);
        device.drop_cache(s.together);
        s.tail.into_iter().for_each(|tail| device.drop_tail(tail));
    }
}

/// Which adapter each sequence has, see [`tails`].
const ORDERS: [&[usize]; 9] = [
    &[2],
    &[1, 3],
    &[0, 0, 0],
    &[2, 2, 2, 2],
    &[4, 1, 0, 4, 1],
    &[2, 2, 2, 2, 2],
    &[3, 2, 1, 0, 4, 3],
    &[0, 1, 0, 2, 0, 3, 0],
    &[1, 4, 2, 0, 3, 1, 4, 2],
];

fn cpu(model: &Model, activations: Activations, simd: Option<Simd>, threads: usize) -> CpuDevice {
    CpuDevice::new(model, CpuOptions { threads: Some(threads), activations, max_tokens: 64, simd }).unwrap()
}

#[test]
fn on_the_cpu_a_batch_is_bit_for_bit_its_passes_alone() {
    for store in STORES {
        let model = random_model(&small_config(), store, 3);
        for activations in [Activations::F32, Activations::Int8] {
            for (simd, threads) in
                Simd::available().into_iter().map(|simd| (simd, 1)).chain([(Simd::best(), 3)])
            {
                for order in ORDERS {
                    let mut device = cpu(&model, activations, Some(simd), threads);
                    let case = format!("{store:?} {activations:?} {simd:?} {threads} threads {order:?}");
                    check(&mut device, &model.recipe, order, Bound::Same, &case);
                }
            }
        }
    }
}

#[test]
fn on_the_gpu_a_batch_is_its_passes_alone() {
    let all: &[Variant] = &VARIANTS;
    for (store, variants) in [(STORES[0], &all[2..3]), (STORES[2], all), (STORES[3], &all[..1])] {
        let model = random_model(&small_config(), store, 3);
        for activations in [Activations::F32, Activations::Int8] {
            for variant in variants {
                let mut device = open(&model, activations, variant.mask);
                // Software computes what the shaders say. A GPU's compiler may fuse a product with a sum in one kernel and not
                // in another.
                let software = device.info().detail.contains(" Cpu,");
                let bound = if software { Bound::Same } else { Bound::Close };
                for order in ORDERS {
                    let case = format!("{store:?} {activations:?} {} {order:?}", variant.name);
                    check(&mut device, &model.recipe, order, bound, &case);
                }
            }
        }
    }
}

#[test]
fn more_rows_than_one_walk_takes_are_several_walks() {
    let model = random_model(&small_config(), STORES[2], 3);
    // Past 32 rows; the adapters at both sides of that border differ.
    let order: Vec<usize> = (0..37).map(|i| (i * 3 + i / 5) % 5).collect();
    for activations in [Activations::F32, Activations::Int8] {
        let mut gpu = open(&model, activations, VARIANTS[0].mask);
        let bound = if gpu.info().detail.contains(" Cpu,") { Bound::Same } else { Bound::Close };
        let mut cpu = cpu(&model, activations, None, 2);
        for (device, bound) in [(&mut gpu as &mut dyn Device, bound), (&mut cpu, Bound::Same)] {
            let case = format!("{} {activations:?}, 37 rows", device.info().kind);
            check(device, &model.recipe, &order, bound, &case);
        }
    }
}

/// A batch that is refused, on whatever device: nothing before the passes' positions has changed.
fn refused(device: &mut dyn Device, recipe: &Recipe) {
    let mut all = sequences(device, recipe, &[1, 0]);
    let first = (vec![5, 6, 7], Want::Nothing);
    let (a, b) = all.split_at_mut(1);
    step(device, &mut [&mut a[0], &mut b[0]], &[first.clone(), first]);
    let (one, two) = (&a[0], &b[0]);
    let tokens = [8u32];
    let good = Forward {
        tokens: &tokens,
        position: 3,
        cache: one.together,
        tail: one.tail,
        scales: &[],
        want: Want::Argmax,
    };
    let other = Forward { cache: two.together, tail: two.tail, ..good };
    let many = [9u32; 64];
    for (bad, what) in [
        (good, "twice in a batch"),
        (Forward { tail: Some(TailId(999)), ..other }, "no such adapter"),
        (Forward { tail: one.tail, scales: &[1.0, 1.0], ..other }, "one scale too many"),
        (Forward { tail: one.tail, scales: &[f32::NAN], ..other }, "no number"),
        (Forward { cache: CacheId(999), ..other }, "no such cache"),
        (Forward { tokens: &[], ..other }, "no tokens"),
        (Forward { tokens: &[4000], ..other }, "no such token"),
        (Forward { position: 200, ..other }, "past the end"),
        (Forward { tokens: &many, ..other }, "one token too many"),
    ] {
        let error = device.forward_batch(&[good, bad]).unwrap_err();
        let named = matches!(
            error,
            Error::InvalidOption { .. }
                | Error::EmptyPrompt
                | Error::TokenOutOfRange { .. }
                | Error::ContextFull { .. }
        );
        assert!(named, "{what}: {error}");
    }
    assert_eq!(device.forward_batch(&[]).unwrap(), []);
    let (together, alone) =
        step(device, &mut [&mut a[0], &mut b[0]], &[(vec![8], Want::Argmax), (vec![8], Want::Argmax)]);
    assert_eq!(together, alone);
}

#[test]
fn a_batch_that_is_refused_changes_nothing() {
    let model = random_model(&small_config(), Store::F32, 3);
    refused(&mut cpu(&model, Activations::F32, None, 2), &model.recipe);
    refused(&mut open(&model, Activations::F32, VARIANTS[0].mask), &model.recipe);
}

#[test]
fn adapters_act_in_a_batch_and_only_on_their_own_rows() {
    let model = random_model(&small_config(), scheme(Int4, Some(32), true), 3);
    let mut device = cpu(&model, Activations::Int8, None, 1);
    let mut all = sequences(&mut device, &model.recipe, &[0, 1, 2, 3, 4]);
    let mut live: Vec<&mut Sequence> = all.iter_mut().collect();
    let work = vec![(vec![5, 6], Want::LastLogits); 5];
    let (together, _) = step(&mut device, &mut live, &work);
    for (i, a) in together.iter().enumerate() {
        for b in &together[i + 1..] {
            let (Answer::Logits(a), Answer::Logits(b)) = (a, b) else { panic!("logits were wanted") };
            assert!(nmse(a, b) > 1e-4, "five adapters give five answers");
        }
    }
}
