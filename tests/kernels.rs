//! The kernel table: every family, scheme, branch and precision on odd and phone-like shapes, against float64.
//!
//! Rows are data; [`check`] is the one place that touches the device. Kernels run through the shipped dispatch code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;
#[path = "kernels/device.rs"]
mod device;
mod gpu;

use calora::Error;
use calora::adapter::{BranchKind, Tail};
use calora::cpu::{CpuDevice, CpuOptions};
use calora::device::{Activations, Answer, Device, Forward, Model, Want};
use calora::gpu::{CapsMask, Family, GpuDevice};
use calora::quant::Bits::{Int2, Int3, Int4, Int8};
use calora::weights::DType;
use common::{Random, Store, nmse, random_branch, random_model, random_tail, scheme, small_config};
use gpu::{
    Extras, VARIANTS, Variant, all_logits, assert_close, forward, one_projection, open, tail_of, twin,
};

/// float32 sums of up to 2048 products in blocks: a few times 2^-24 times the square root of their number.
const F32: f64 = 1e-5;
/// The same, against float64 on the same rounded inputs: integer sums are exact, scales multiply in float32.
const INT8_OWN: f64 = 1e-5;
/// Against unrounded inputs: 1/254 of a block's largest value per input, averaged over a row.
const INT8_PURE: f64 = 1e-2;

/// (R, K, how it is stored, what else).
const TABLE: &[(usize, usize, Store, Extras)] = &{
    const NONE: Extras = Extras { norm: false, bias: false };
    const BIAS: Extras = Extras { norm: false, bias: true };
    [
        (33, 172, Store::F32, BIAS),
        (96, 256, Store::F16, NONE),
        (65, 100, Store::F16, NONE),
        (64, 64, Store::BF16, BIAS),
        (33, 172, scheme(Int4, None, true), BIAS),
        (35, 172, scheme(Int4, None, false), NONE),
        (512, 256, scheme(Int4, Some(32), true), NONE),
        (96, 256, scheme(Int4, Some(32), false), BIAS),
        (64, 64, scheme(Int4, Some(64), true), NONE),
        (130, 384, scheme(Int4, Some(128), false), NONE),
        (33, 172, scheme(Int8, None, true), NONE),
        (41, 172, scheme(Int8, None, false), BIAS),
        (96, 256, scheme(Int8, Some(32), true), NONE),
        (64, 64, scheme(Int8, Some(64), false), NONE),
        (130, 384, scheme(Int8, Some(128), true), BIAS),
        (33, 172, scheme(Int3, None, true), BIAS),
        (96, 256, scheme(Int3, Some(32), true), NONE),
        (130, 384, scheme(Int3, Some(128), true), NONE),
        (41, 172, scheme(Int2, None, true), NONE),
        (96, 256, scheme(Int2, Some(32), true), BIAS),
        (64, 64, scheme(Int2, Some(64), true), NONE),
    ]
};

/// Tokens of a pass: decode, the few that GPUs decode too, a partial tile, more than a tile.
const TOKENS: [usize; 4] = [1, 2, 5, 33];

/// One row of the table on one variant: no branch, LoRA, recovery and both, each at every number of tokens.
fn check(variant: &Variant, activations: Activations, row: &(usize, usize, Store, Extras)) {
    let &(rows, cols, store, extras) = row;
    let mut rng = Random(rows as u64 * 7919 + cols as u64);
    let model = one_projection(&mut rng, rows, cols, store, extras);
    let mut device = open(&model, activations, variant.mask);
    let mut branch = |kind, rank, dtype| random_branch(&mut rng, kind, (rows, cols), rank, dtype, 0.5);
    // Ranks that do and do not fill a chunk; float16 and float32 storage.
    let lora = vec![branch(BranchKind::Lora, 4, DType::F16)];
    let recovery = vec![branch(BranchKind::Recovery, 16, DType::F32)];
    let both = vec![branch(BranchKind::Lora, 5, DType::F16), branch(BranchKind::Recovery, 11, DType::F16)];
    let names = [("none", None), ("LoRA", Some(lora)), ("recovery", Some(recovery)), ("both", Some(both))];
    for (name, branches) in names {
        let tail = branches.map(tail_of);
        let id = tail.as_ref().map(|t| device.load_tail(t).unwrap());
        for tokens in TOKENS {
            let ids: Vec<u32> = (0..tokens).map(|t| (t * 11 % rows) as u32).collect();
            let wanted: Vec<usize> = (0..tokens).collect();
            let actual = all_logits(&mut device, &ids, id);
            let what = format!(
                "{}, {store:?}, {activations:?}, branch {name}, {rows} x {cols}, T {tokens}",
                variant.name
            );
            let pure = twin::logits(&model, &ids, tail.as_ref(), &wanted, false);
            if activations == Activations::F32 {
                assert_close(&what, &actual, &pure, F32);
            } else {
                let own = twin::logits(&model, &ids, tail.as_ref(), &wanted, true);
                assert_close(&what, &actual, &own, INT8_OWN);
                assert_close(&format!("{what}, inputs unrounded"), &actual, &pure, INT8_PURE);
            }
        }
    }
}

fn check_table(activations: Activations) {
    for variant in &VARIANTS {
        for row in TABLE {
            if activations == Activations::F32 || matches!(row.2, Store::Packed(_)) {
                check(variant, activations, row);
            }
        }
    }
}

#[test]
fn the_table_in_f32() {
    check_table(Activations::F32);
}

#[test]
fn the_table_in_int8() {
    check_table(Activations::Int8);
}

#[test]
fn a_phone_sized_matrix() {
    for variant in [&VARIANTS[0], &VARIANTS[2]] {
        for activations in [Activations::F32, Activations::Int8] {
            check(variant, activations, &(2048, 2048, scheme(Int4, Some(32), true), Extras::default()));
        }
    }
}

#[test]
fn norms_before_a_projection() {
    for variant in &VARIANTS {
        for (rows, cols) in [(33, 172), (64, 64), (96, 2048)] {
            let extras = Extras { norm: true, bias: false };
            check(variant, Activations::F32, &(rows, cols, Store::F32, extras));
        }
    }
}

/// Scales that float16 cannot hold stay float32.
#[test]
fn scales_outside_f16() {
    for variant in &VARIANTS {
        let mut rng = Random(5);
        let mut model = one_projection(&mut rng, 40, 64, scheme(Int8, Some(32), true), Extras::default());
        let weights = std::sync::Arc::make_mut(&mut model.weights);
        if let calora::weights::Storage::Packed { scales, .. } = &mut weights.matrices[1].storage {
            let values: Vec<f32> = (0..80).map(|_| 1e-6 * (1.0 + rng.uniform())).collect();
            *scales = calora::weights::Tensor::from_f32("scale", &[40, 2], &values).unwrap();
        }
        for activations in [Activations::F32, Activations::Int8] {
            let mut device = open(&model, activations, variant.mask);
            for ids in [&[3u32][..], &[0, 1, 2, 3, 4, 5, 6]] {
                let wanted: Vec<usize> = (0..ids.len()).collect();
                let expected = twin::logits(&model, ids, None, &wanted, activations == Activations::Int8);
                assert_close(variant.name, &all_logits(&mut device, ids, None), &expected, F32);
            }
        }
    }
}

/// GELU at its kink, in its tails and where its error formula is worst.
#[test]
fn exact_gelu_everywhere() {
    let inputs = [0.0f32, 1e-3, -1e-3, 0.3, -0.3, 1.0, -1.0, 2.5, -2.5, 6.0, -6.0, 40.0, -40.0];
    for variant in [&VARIANTS[0], &VARIANTS[2]] {
        let mut model = one_projection(&mut Random(1), inputs.len(), 32, Store::F32, Extras::default());
        let zeros = vec![0.0; inputs.len() * 32];
        let table: Vec<f32> = inputs.iter().flat_map(|v| std::iter::repeat_n(*v, 32)).collect();
        let dense = |values: &[f32]| {
            let shape = [inputs.len(), 32];
            calora::weights::Matrix::dense(calora::weights::Tensor::from_f32("w", &shape, values).unwrap())
                .unwrap()
        };
        let weights = std::sync::Arc::make_mut(&mut model.weights);
        weights.matrices = vec![dense(&table), dense(&zeros)];
        // One rank that picks the first input, passed on to the first row.
        let mut branch =
            random_branch(&mut Random(1), BranchKind::Recovery, (inputs.len(), 32), 1, DType::F32, 1.0);
        let one = |shape: [usize; 2]| {
            let mut values = vec![0.0; shape[0] * shape[1]];
            values[0] = 1.0;
            calora::adapter::LowRank::Float(
                calora::weights::Tensor::from_f32("one", &shape, &values).unwrap(),
            )
        };
        branch.scaling = 1.0;
        branch.down = one([1, 32]);
        branch.up = one([inputs.len(), 1]);
        let mut device = open(&model, Activations::F32, variant.mask);
        let tail = device.load_tail(&tail_of(vec![branch])).unwrap();
        for (id, input) in inputs.iter().enumerate() {
            let actual = f64::from(all_logits(&mut device, &[id as u32], Some(tail))[0]);
            let expected = twin::gelu(f64::from(*input));
            // The formula's bound of 1.5e-7 on erf, times half the input.
            let allowed = 2e-7 * f64::from(input.abs()).max(1e-3);
            assert!((actual - expected).abs() <= allowed, "gelu({input}) = {actual}, expected {expected}");
        }
    }
}

fn llama(fields: serde_json::Value) -> serde_json::Value {
    let mut config = small_config();
    for (key, value) in fields.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// Decoding at these positions, the rest of the text prefilled in chunks.
fn check_attention(
    variant: &Variant,
    activations: Activations,
    shape: (usize, usize, usize),
    positions: &[usize],
) {
    let (heads, kv_heads, dim) = shape;
    let length = positions.last().unwrap() + 1;
    let config = llama(serde_json::json!({
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim, "hidden_size": 32,
        "intermediate_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 4096
    }));
    let model = random_model(&config, Store::F32, dim as u64);
    let mut rng = Random(3);
    let tokens: Vec<u32> = (0..length).map(|_| rng.below(model.recipe.shape.vocab) as u32).collect();
    let mut device = open(&model, activations, variant.mask);
    let cache = device.create_cache(length).unwrap();
    let expected = twin::logits(&model, &tokens, None, positions, false);
    let vocab = model.recipe.shape.vocab;
    let mut at = 0;
    for (position, expected) in positions.iter().zip(expected.chunks(vocab)) {
        while at < *position {
            let chunk = (*position - at).min(64);
            forward(&mut device, &tokens[at..at + chunk], at, cache, None, Want::Nothing);
            at += chunk;
        }
        let answer = forward(&mut device, &tokens[at..=at], at, cache, None, Want::LastLogits);
        at += 1;
        let Answer::Logits(actual) = answer else { panic!("no logits") };
        let what = format!("attention, {}, {activations:?}, {shape:?}, position {position}", variant.name);
        // Half-precision keys and values: 2^-11 of each, averaged over a head.
        assert_close(&what, &actual, expected, if activations == Activations::F32 { F32 } else { 2e-3 });
    }
}

#[test]
fn attention_at_every_head_size() {
    let shapes = [(4, 2, 8), (2, 2, 16), (4, 1, 32), (3, 3, 64), (2, 1, 128), (6, 2, 10)];
    for variant in &VARIANTS {
        for shape in shapes {
            check_attention(variant, Activations::F32, shape, &[0, 1, 2, 63, 64, 65]);
        }
    }
}

#[test]
fn attention_far_back() {
    for variant in [&VARIANTS[0], &VARIANTS[2]] {
        check_attention(variant, Activations::F32, (4, 2, 32), &[1000]);
        check_attention(variant, Activations::Int8, (4, 2, 64), &[65, 700]);
    }
    check_attention(&VARIANTS[2], Activations::F32, (2, 1, 16), &[3000]);
    check_attention(&VARIANTS[0], Activations::F32, (2, 2, 16), &[3000]);
}

fn cpu(model: &Model, activations: Activations) -> CpuDevice {
    CpuDevice::new(model, CpuOptions { threads: Some(2), activations, max_tokens: 64, simd: None }).unwrap()
}

fn ids(model: &Model, count: usize) -> Vec<u32> {
    let mut rng = Random(17);
    (0..count).map(|_| rng.below(model.recipe.shape.vocab) as u32).collect()
}

#[test]
fn a_small_llama_equals_the_cpu() {
    let tied =
        llama(serde_json::json!({"tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true}));
    let rows = [
        (small_config(), Store::F32),
        (small_config(), Store::BF16),
        (small_config(), scheme(Int4, Some(32), true)),
        (tied.clone(), scheme(Int8, None, false)),
        (tied.clone(), scheme(Int4, Some(64), false)),
        (tied.clone(), scheme(Int3, Some(32), true)),
        (tied, scheme(Int2, Some(32), true)),
    ];
    for (i, (config, store)) in rows.into_iter().enumerate() {
        let model = random_model(&config, store, 11);
        let tail = random_tail(&model.recipe, 4, 8, DType::F16, 5);
        let tokens = ids(&model, 21);
        let mut variants = VARIANTS.to_vec();
        if i > 0 {
            variants.truncate(3);
        }
        for variant in variants {
            for activations in [Activations::F32, Activations::Int8] {
                let (mut cpu, mut gpu) = (cpu(&model, activations), open(&model, activations, variant.mask));
                let (on_cpu, on_gpu) = (cpu.load_tail(&tail).unwrap(), gpu.load_tail(&tail).unwrap());
                for attached in [false, true] {
                    let expected = all_logits(&mut cpu, &tokens, attached.then_some(on_cpu));
                    let actual = all_logits(&mut gpu, &tokens, attached.then_some(on_gpu));
                    // int8: values a rounding step apart where float32 sums of the norm differ in the last bit.
                    let allowed = if activations == Activations::F32 { 1e-8 } else { 1e-4 };
                    let error = nmse(&actual, &expected);
                    assert!(
                        error <= allowed,
                        "{}, {store:?}, {activations:?}, adapter {attached}: NMSE {error:.1e}",
                        variant.name
                    );
                }
            }
        }
    }
}

/// Prompt and answer through prefill chunks and single tokens; the argmax found on the GPU is that of its logits.
#[test]
fn chunks_decode_and_argmax_agree() {
    let model = random_model(&small_config(), scheme(Int4, Some(32), true), 2);
    let tokens = ids(&model, 40);
    for variant in &VARIANTS {
        let mut device = open(&model, Activations::F32, variant.mask);
        let whole = all_logits(&mut device, &tokens, None);
        let vocab = model.recipe.shape.vocab;
        let cache = device.create_cache(40).unwrap();
        let mut at = 0;
        for chunk in [1, 7, 1, 20, 3, 1, 1, 6] {
            let answer = forward(&mut device, &tokens[at..at + chunk], at, cache, None, Want::LastLogits);
            let Answer::Logits(logits) = answer else { panic!("no logits") };
            let again = forward(&mut device, &tokens[at..at + chunk], at, cache, None, Want::Argmax);
            at += chunk;
            let expected = &whole[(at - 1) * vocab..at * vocab];
            assert!(nmse(&logits, expected) < 1e-10, "{}, position {at}", variant.name);
            let best = (0..vocab).rev().max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
            assert_eq!(again, Answer::Token(best as u32), "{}, position {at}", variant.name);
        }
    }
}

#[test]
fn equal_logits_yield_the_lowest_id() {
    let mut model = one_projection(&mut Random(4), 700, 32, Store::F32, Extras::default());
    let weights = std::sync::Arc::make_mut(&mut model.weights);
    let same = vec![0.5; 700 * 32];
    let tensor = calora::weights::Tensor::from_f32("w", &[700, 32], &same).unwrap();
    weights.matrices[1] = calora::weights::Matrix::dense(tensor).unwrap();
    for variant in &VARIANTS {
        let mut device = open(&model, Activations::F32, variant.mask);
        let cache = device.create_cache(1).unwrap();
        assert_eq!(forward(&mut device, &[9], 0, cache, None, Want::Argmax), Answer::Token(0));
    }
}
