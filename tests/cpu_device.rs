//! The CPU device against float64 arithmetic, linear by linear, and whole passes against themselves.
#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "cpu_device/adapters.rs"]
mod adapters;
mod common;

use std::sync::Arc;

use calora::Error;
use calora::adapter::{Branch, BranchKind, LowRank, Tail};
use calora::arch::{
    Linear, LinearId, MatrixId, MatrixSpec, ModelShape, Output, Recipe, Rope, Slot, Step, VectorId,
    VectorSpec,
};
use calora::cpu::{CpuDevice, CpuOptions, Simd};
use calora::device::{Activations, Answer, CacheId, Device, Forward, Model, TailId, Want, Weights};
use calora::quant::activations::{BLOCK, Int8Row};
use calora::quant::{Bits, Scheme};
use calora::weights::{DType, Matrix, Storage};
use common::{
    Random, Store, float_tensor, nmse, random_branch, random_matrix, random_model, random_tail, scheme,
};

fn options(activations: Activations) -> CpuOptions {
    CpuOptions { threads: Some(2), activations, max_tokens: 64, simd: None }
}

/// A recipe of one linear with a bias: the embedding's rows are its inputs, the logits its outputs.
fn one_linear(rng: &mut Random, rows: usize, cols: usize, store: Store) -> Model {
    let shape = ModelShape {
        hidden: cols,
        mlp: 1,
        layers: 0,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        vocab: rows,
        context: 64,
    };
    let spec = |path: &str| MatrixSpec { path: path.into(), alias: None, rows, cols };
    let recipe = Recipe {
        architecture: "test".into(),
        shape,
        norm_eps: 1e-5,
        rope: Rope { inverse_frequencies: vec![1.0] },
        matrices: vec![spec("inputs"), spec("linear")],
        vectors: vec![VectorSpec { name: "linear.bias".into(), len: rows }],
        linears: vec![Linear { path: "linear".into(), matrix: MatrixId(1), bias: Some(VectorId(0)) }],
        steps: vec![
            Step::Embed { table: MatrixId(0) },
            Step::Project {
                norm: None,
                input: Slot::Residual,
                linears: vec![LinearId(0)],
                output: Output::Store(vec![Slot::Logits]),
            },
        ],
    };
    let inputs = rng.normals(rows * cols, 1.0);
    let inputs = Matrix::dense(float_tensor("inputs", DType::F32, &[rows, cols], &inputs)).unwrap();
    let weights = Weights {
        matrices: vec![inputs, random_matrix(rng, rows, cols, store)],
        vectors: vec![rng.normals(rows, 0.1)],
    };
    Model { recipe: Arc::new(recipe), weights: Arc::new(weights) }
}

fn forward(device: &mut CpuDevice, cache: CacheId, tail: Option<TailId>, tokens: &[u32]) -> Vec<f32> {
    forward_at(device, cache, tail, tokens, 0)
}

fn forward_at(
    device: &mut CpuDevice,
    cache: CacheId,
    tail: Option<TailId>,
    tokens: &[u32],
    position: usize,
) -> Vec<f32> {
    let pass = Forward { tokens, position, cache, tail, scales: &[], want: Want::AllLogits };
    match device.forward(&pass).unwrap() {
        Answer::Logits(logits) => logits,
        other => panic!("expected logits, got {other:?}"),
    }
}

/// All logits of a fresh device.
fn run(model: &Model, options: &CpuOptions, tail: Option<&Tail>, tokens: &[u32]) -> Vec<f32> {
    let mut device = CpuDevice::new(model, options.clone()).unwrap();
    let cache = device.create_cache(256).unwrap();
    let tail = tail.map(|tail| device.load_tail(tail).unwrap());
    forward(&mut device, cache, tail, tokens)
}

/// erf by Simpson's rule: another way than the device's.
fn erf(x: f64) -> f64 {
    let (n, f) = (2000, |t: f64| (-t * t).exp());
    let h = x / f64::from(n);
    let inner: f64 = (1..n).map(|i| f(h * f64::from(i)) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    2.0 / std::f64::consts::PI.sqrt() * h / 3.0 * (f(0.0) + inner + f(x))
}

/// `y = W x + bias + Σ scaling · up · act(down · x)` in float64. With `int8` the base meets the rounded activations.
fn reference(model: &Model, branches: &[Branch], token: usize, int8: bool) -> Vec<f64> {
    let [inputs, matrix] = &model.weights.matrices[..] else { panic!("two matrices") };
    let cols = matrix.cols;
    let x: Vec<f64> =
        inputs.to_f32().unwrap()[token * cols..][..cols].iter().map(|v| f64::from(*v)).collect();
    let mut rounded = x.clone();
    if int8 && matches!(matrix.storage, Storage::Packed { .. }) {
        let row = Int8Row::quantise(&x.iter().map(|v| *v as f32).collect::<Vec<_>>());
        for (k, v) in rounded.iter_mut().enumerate() {
            *v = f64::from(row.values[k]) * f64::from(row.scales[k / BLOCK]);
        }
    }
    let product = |w: &[f32], x: &[f64]| -> Vec<f64> {
        w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
    };
    let mut y = product(&matrix.to_f32().unwrap(), &rounded);
    for (y, bias) in y.iter_mut().zip(&model.weights.vectors[0]) {
        *y += f64::from(*bias);
    }
    for branch in branches {
        let mut t = product(&branch.down.to_f32().unwrap(), &x);
        for v in &mut t {
            if branch.kind.is_gelu() {
                *v *= 0.5 * (1.0 + erf(*v / 2f64.sqrt()));
            }
            *v *= f64::from(branch.scaling);
        }
        for (y, delta) in y.iter_mut().zip(product(&branch.up.to_f32().unwrap(), &t)) {
            *y += delta;
        }
    }
    y
}

/// int8 with a scale a row, as task files store branches.
fn int8_low_rank(rng: &mut Random, rows: usize, cols: usize, std: f32) -> LowRank {
    let values: Vec<i8> = (0..rows * cols).map(|_| rng.below(255) as i8).collect();
    let scales: Vec<f32> = (0..rows).map(|_| std / 73.0 * (0.5 + rng.uniform())).collect();
    LowRank::Int8 {
        values: calora::weights::Tensor::from_slice("int8", DType::I8, &[rows, cols], &values).unwrap(),
        scales: float_tensor("int8_scale", DType::F32, &[rows], &scales),
    }
}

/// Branches of several kinds, ranks and stored types.
fn branch_cases(rng: &mut Random, rows: usize, cols: usize) -> Vec<(&'static str, Vec<Branch>)> {
    let shape = (rows, cols);
    let mut branch = |kind, rank, dtype| random_branch(rng, kind, shape, rank, dtype, 0.5);
    let mut cases = vec![
        ("none", vec![]),
        ("lora f16", vec![branch(BranchKind::Lora, 8, DType::F16)]),
        ("recovery f32", vec![branch(BranchKind::Recovery, 5, DType::F32)]),
        (
            "lora and recovery",
            vec![branch(BranchKind::Lora, 3, DType::F32), branch(BranchKind::Recovery, 33, DType::F16)],
        ),
        (
            "three",
            vec![
                branch(BranchKind::Lora, 1, DType::BF16),
                branch(BranchKind::LinearRecovery, 16, DType::F16),
                branch(BranchKind::Recovery, 2, DType::F16),
            ],
        ),
    ];
    let down = int8_low_rank(rng, 6, cols, 1.0 / (cols as f32).sqrt());
    let up = int8_low_rank(rng, rows, 6, 0.2);
    cases.push(("recovery int8", vec![Branch { kind: BranchKind::Recovery, scaling: 0.7, down, up }]));
    cases
}

/// Every stored form with the shapes that it allows.
fn linear_cases() -> Vec<(usize, usize, Store)> {
    let mut cases = Vec::new();
    for (rows, cols) in [(33, 172), (64, 64), (96, 256), (17, 1), (40, 33), (31, 130)] {
        cases.extend([Store::F32, Store::F16, Store::BF16].map(|store| (rows, cols, store)));
        for (bits, group, symmetric) in [Bits::Int2, Bits::Int3, Bits::Int4, Bits::Int8]
            .into_iter()
            .flat_map(|bits| [None, Some(32), Some(64), Some(128)].map(|group| (bits, group)))
            .flat_map(|(bits, group)| [true, false].map(|symmetric| (bits, group, symmetric)))
        {
            // Mid-rise levels have no zero points.
            if group.is_none_or(|g| cols % g == 0) && (symmetric || !bits.is_mid_rise()) {
                cases.push((rows, cols, scheme(bits, group, symmetric)));
            }
        }
    }
    cases
}

/// Float32 sums of a few hundred products of either sign: rounding is some 1e-7 of the largest output. In int8 mode
/// integer sums are exact and the comparison is with the same rounded activations, so the same bound holds, except where
/// int8 branches are held as f16 (2^-11 of the branch).
#[test]
fn every_linear_is_its_formula() {
    let mut rng = Random(1);
    for (rows, cols, store) in linear_cases() {
        let model = one_linear(&mut rng, rows, cols, store);
        for (name, branches) in branch_cases(&mut rng, rows, cols) {
            let tail = Tail { branches: vec![branches.clone()] };
            for activations in [Activations::F32, Activations::Int8] {
                let int8 = activations == Activations::Int8;
                let tokens = [0, 5, 16, 7, 2, 3, 3];
                let expected: Vec<Vec<f64>> =
                    tokens.iter().map(|t| reference(&model, &branches, *t as usize, int8)).collect();
                let tolerance = if int8 && name == "recovery int8" { 1e-3 } else { 1e-5 };
                for simd in Simd::available() {
                    let options = CpuOptions { simd: Some(simd), ..options(activations) };
                    let logits = run(&model, &options, Some(&tail), &tokens);
                    for (actual, expected) in logits.chunks(rows).zip(&expected) {
                        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                        for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
                            let error = (f64::from(*a) - e).abs() / largest;
                            assert!(
                                error <= tolerance,
                                "{rows}x{cols} {store:?} {name} {activations:?} {simd:?}: row {i} is {a}, expected {e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn int8_sums_have_the_same_bits_on_every_instruction_set() {
    let mut rng = Random(2);
    for (rows, cols, store) in linear_cases() {
        if !matches!(store, Store::Packed(_)) {
            continue;
        }
        let model = one_linear(&mut rng, rows, cols, store);
        let bits = |simd| {
            let options = CpuOptions { simd: Some(simd), ..options(Activations::Int8) };
            let logits = run(&model, &options, None, &[1, 2, 3, 4, 5, 6]);
            logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let portable = bits(Simd::Portable);
        for simd in Simd::available() {
            assert_eq!(bits(simd), portable, "{rows}x{cols} {store:?} {simd:?}");
        }
    }
}

/// The model in every stored form that matters for whole passes.
fn models() -> Vec<(Store, Model)> {
    let stores = [
        Store::F32,
        scheme(Bits::Int4, Some(32), true),
        scheme(Bits::Int4, None, false),
        scheme(Bits::Int8, Some(64), false),
        scheme(Bits::Int3, Some(32), true),
        scheme(Bits::Int2, None, true),
    ];
    let config = common::small_config();
    stores.into_iter().map(|store| (store, random_model(&config, store, 3))).collect()
}

const PROMPT: [u32; 19] = [5, 99, 0, 119, 7, 7, 42, 63, 88, 1, 2, 3, 50, 51, 52, 53, 54, 118, 9];

#[test]
fn chunks_yield_the_bits_of_one_pass() {
    for (store, model) in models() {
        let tail = random_tail(&model.recipe, 4, 5, DType::F16, 4);
        for activations in [Activations::F32, Activations::Int8] {
            for simd in Simd::available() {
                let options = CpuOptions { simd: Some(simd), ..options(activations) };
                let whole = run(&model, &options, Some(&tail), &PROMPT);
                let mut device = CpuDevice::new(&model, options).unwrap();
                let id = device.load_tail(&tail).unwrap();
                for sizes in [&[1usize; 19][..], &[4, 1, 5, 7, 2], &[18, 1]] {
                    let cache = device.create_cache(32).unwrap();
                    let (mut at, mut logits) = (0, Vec::new());
                    for size in sizes {
                        let chunk = &PROMPT[at..at + size];
                        logits.extend(forward_at(&mut device, cache, Some(id), chunk, at));
                        at += size;
                    }
                    assert!(logits == whole, "{store:?} {activations:?} {simd:?} in chunks {sizes:?}");
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut config = common::small_config();
    // Large enough to be split.
    config["hidden_size"] = 256.into();
    config["intermediate_size"] = 512.into();
    let model = random_model(&config, scheme(Bits::Int4, Some(32), true), 5);
    let tail = random_tail(&model.recipe, 4, 8, DType::F16, 6);
    let with = |threads| {
        let options = CpuOptions { threads: Some(threads), ..options(Activations::Int8) };
        run(&model, &options, Some(&tail), &PROMPT)
    };
    let one = with(1);
    assert!([2, 3, 5].into_iter().all(|threads| with(threads) == one));
}

#[test]
fn int8_activations_stay_near_float_ones() {
    for (store, model) in models() {
        let float = run(&model, &options(Activations::F32), None, &PROMPT);
        let int8 = run(&model, &options(Activations::Int8), None, &PROMPT);
        // Rounding to one of 255 levels in each block costs about 1e-5 a linear; half-precision KV far less.
        assert!(nmse(&int8, &float) < 1e-2, "{store:?}: {}", nmse(&int8, &float));
        // Halves in the cache alone change something, so the modes are really two.
        assert!(int8 != float, "{store:?}");
    }
}

#[test]
fn every_want_reads_the_same_pass() {
    let (_, model) = models().remove(1);
    let vocab = model.recipe.shape.vocab;
    let mut device = CpuDevice::new(&model, options(Activations::Int8)).unwrap();
    let cache = device.create_cache(19).unwrap();
    let all = forward(&mut device, cache, None, &PROMPT);
    let last = &all[18 * vocab..];
    let mut ask = |want| {
        device
            .forward(&Forward { tokens: &PROMPT, position: 0, cache, tail: None, scales: &[], want })
            .unwrap()
    };
    assert_eq!(ask(Want::LastLogits), Answer::Logits(last.to_vec()));
    let best = (0..vocab).rev().max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
    assert_eq!(ask(Want::Argmax), Answer::Token(best as u32));
    assert_eq!(ask(Want::Nothing), Answer::Nothing);
}

#[test]
fn among_equal_logits_the_lowest_id_wins() {
    let mut rng = Random(9);
    let mut model = one_linear(&mut rng, 16, 32, Store::F32);
    let weights = Weights {
        matrices: vec![
            model.weights.matrices[0].clone(),
            Matrix::dense(float_tensor("zero", DType::F32, &[16, 32], &[0.0; 512])).unwrap(),
        ],
        vectors: vec![(0..16).map(|i| if i % 5 == 3 { 1.0 } else { 0.0 }).collect()],
    };
    model.weights = Arc::new(weights);
    let mut device = CpuDevice::new(&model, options(Activations::F32)).unwrap();
    let cache = device.create_cache(1).unwrap();
    let pass = Forward { tokens: &[0], position: 0, cache, tail: None, scales: &[], want: Want::Argmax };
    assert_eq!(device.forward(&pass).unwrap(), Answer::Token(3));
}
#[test]
fn what_cannot_run_is_an_error_and_leaves_the_cache() {
    let (_, model) = models().remove(1);
    let mut device = CpuDevice::new(&model, options(Activations::F32)).unwrap();
    let cache = device.create_cache(20).unwrap();
    let before = forward(&mut device, cache, None, &PROMPT);
    let tokens = [1u32; 65];
    let mut fail = |tokens: &[u32], position, cache, tail| {
        let pass = Forward { tokens, position, cache, tail, scales: &[], want: Want::Nothing };
        device.forward(&pass).unwrap_err()
    };
    assert!(matches!(fail(&[], 0, cache, None), Error::EmptyPrompt));
    assert!(matches!(fail(&[1, 120], 0, cache, None), Error::TokenOutOfRange { id: 120, vocab: 120 }));
    assert!(matches!(fail(&[1, 2], 19, cache, None), Error::ContextFull { needed: 21, available: 20 }));
    assert!(matches!(fail(&[1], usize::MAX, cache, None), Error::ContextFull { .. }));
    assert!(matches!(fail(&tokens, 0, cache, None), Error::InvalidOption { .. }));
    assert!(matches!(fail(&[1], 0, CacheId(999), None), Error::InvalidOption { .. }));
    assert!(matches!(fail(&[1], 0, cache, Some(TailId(999))), Error::InvalidOption { .. }));
    let last = forward_at(&mut device, cache, None, &PROMPT[18..], 18);
    assert!(last == before[18 * 120..], "the cache has changed");

    let tail = device.load_tail(&random_tail(&model.recipe, 2, 0, DType::F32, 1)).unwrap();
    assert!(device.memory().tails > 0);
    device.drop_tail(tail);
    device.drop_cache(cache);
    device.drop_cache(cache);
    let pass = Forward { tokens: &[1], position: 0, cache, tail: None, scales: &[], want: Want::Nothing };
    assert!(matches!(device.forward(&pass), Err(Error::InvalidOption { .. })));
    let other = device.create_cache(4).unwrap();
    let pass = Forward { cache: other, tail: Some(tail), ..pass };
    assert!(matches!(device.forward(&pass), Err(Error::InvalidOption { .. })));
    device.drop_cache(other);
    assert_eq!((device.memory().caches, device.memory().tails), (0, 0));
    assert!(matches!(device.create_cache(usize::MAX / 2), Err(Error::OutOfMemory { .. })));
    assert!(matches!(device.create_cache(1 << 48), Err(Error::OutOfMemory { .. })));
}

#[test]
fn what_cannot_be_placed_is_refused() {
    let (_, model) = models().remove(1);
    let refused =
        |options: CpuOptions| matches!(CpuDevice::new(&model, options), Err(Error::InvalidOption { .. }));
    let usual = options(Activations::F32);
    assert!(refused(CpuOptions { threads: Some(0), ..usual.clone() }));
    assert!(refused(CpuOptions { max_tokens: 0, ..usual.clone() }));
    let foreign = if cfg!(target_arch = "x86_64") { Simd::Neon } else { Simd::Avx2 };
    assert!(refused(CpuOptions { simd: Some(foreign), ..usual.clone() }));

    let mut device = CpuDevice::new(&model, usual.clone()).unwrap();
    let mut tail = random_tail(&model.recipe, 2, 0, DType::F32, 1);
    tail.branches[0][0].up = LowRank::Float(float_tensor("up", DType::F32, &[3, 2], &[0.0; 6]));
    assert!(matches!(device.load_tail(&tail), Err(Error::Tensor { .. })));
    let mut tail = random_tail(&model.recipe, 2, 0, DType::F32, 1);
    tail.branches[1][0].down = LowRank::Float(float_tensor("down", DType::F32, &[2, 64], &[f32::NAN; 128]));
    assert!(matches!(device.load_tail(&tail), Err(Error::Tensor { .. })));
    let mut tail = random_tail(&model.recipe, 2, 0, DType::F32, 1);
    tail.branches[2][0].scaling = f32::INFINITY;
    assert!(matches!(device.load_tail(&tail), Err(Error::InvalidOption { .. })));

    let scheme = Scheme { bits: Bits::Int4, group: calora::quant::Group::Channel, symmetric: true };
    let words = calora::weights::Tensor::from_slice("w", DType::I32, &[120, 8], &[0u32; 960]).unwrap();
    let scales = float_tensor("w_scale", DType::F16, &[120, 1], &[f32::NAN; 120]);
    let mut weights = Weights::clone(&model.weights);
    let head = weights.matrices.len() - 1;
    weights.matrices[head] = Matrix::packed(120, 64, scheme, words, scales, None).unwrap();
    let damaged = Model { weights: Arc::new(weights.clone()), ..model.clone() };
    assert!(matches!(CpuDevice::new(&damaged, usual.clone()), Err(Error::Tensor { .. })));
    weights.matrices[head] = weights.matrices[1].clone();
    let swapped = Model { weights: Arc::new(weights), ..model.clone() };
    assert!(matches!(CpuDevice::new(&swapped, usual), Err(Error::Tensor { .. })));
}
