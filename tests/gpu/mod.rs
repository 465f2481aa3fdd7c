//! What the GPU tests share: opening a device (never skipping), one-projection models, and comparisons.
#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic)]

pub mod twin;

use std::sync::Arc;

use calora::adapter::Tail;
use calora::arch::{
    Linear, LinearId, MatrixId, MatrixSpec, ModelShape, Output, Recipe, Rope, Slot, Step, VectorId,
    VectorSpec,
};
use calora::device::{Activations, Answer, CacheId, Device, Forward, Model, TailId, Want, Weights};
use calora::gpu::{CapsMask, Family, GpuChoice, GpuDevice, GpuOptions};

use crate::common::{Random, Store, random_matrix};

/// A family with some capabilities masked.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub name: &'static str,
    pub mask: CapsMask,
}

const fn variant(name: &'static str, family: Family, no_subgroups: bool, no_f16: bool) -> Variant {
    Variant { name, mask: CapsMask { family: Some(family), no_subgroups, no_f16, max_binding: None } }
}

/// Every way that kernels are chosen: both families, each with and without subgroups and 16-bit storage.
pub const VARIANTS: [Variant; 4] = [
    variant("lanes", Family::Lanes, false, false),
    variant("lanes, no subgroups, no f16", Family::Lanes, true, true),
    variant("split", Family::Split, false, false),
    variant("split, no subgroups, no f16", Family::Split, true, true),
];

/// Opens whatever GPU there is, software Vulkan included. Fails, and says what to install, where there is none.
pub fn open(model: &Model, activations: Activations, mask: CapsMask) -> GpuDevice {
    let options =
        GpuOptions { activations, max_tokens: 64, choice: GpuChoice::Any, mask, ..GpuOptions::default() };
    GpuDevice::new(model, options).unwrap_or_else(|e| {
        panic!(
            "{e}\nThese tests need a GPU or software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1"
        )
    })
}

/// One pass from position 0 of a fresh cache, all logits.
pub fn all_logits(device: &mut dyn Device, tokens: &[u32], tail: Option<TailId>) -> Vec<f32> {
    let cache = device.create_cache(tokens.len()).unwrap();
    let answer = forward(device, tokens, 0, cache, tail, Want::AllLogits);
    device.drop_cache(cache);
    match answer {
        Answer::Logits(logits) => logits,
        other => panic!("{other:?} instead of logits"),
    }
}

/// One pass.
pub fn forward(
    device: &mut dyn Device,
    tokens: &[u32],
    position: usize,
    cache: CacheId,
    tail: Option<TailId>,
    want: Want,
) -> Answer {
    device.forward(&Forward { tokens, position, cache, tail, scales: &[], want }).unwrap()
}

/// What a one-projection model has beside its matrix.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras {
    pub norm: bool,
    pub bias: bool,
}

/// `logits = W x + bias`, x being rows of a float32 embedding: shipped kernels through the shipped dispatch code.
pub fn one_projection(rng: &mut Random, rows: usize, cols: usize, store: Store, extras: Extras) -> Model {
    let mut vectors = Vec::new();
    let mut specs = Vec::new();
    let mut vector = |name: &str, values: Vec<f32>| {
        specs.push(VectorSpec { name: name.into(), len: values.len() });
        vectors.push(values);
        VectorId(vectors.len() - 1)
    };
    let norm = extras.norm.then(|| vector("norm.weight", rng.normals(cols, 1.0)));
    let bias = extras.bias.then(|| vector("lm_head.bias", rng.normals(rows, 1.0)));
    let spec = |path: &str, rows, cols| MatrixSpec { path: path.into(), alias: None, rows, cols };
    let recipe = Recipe {
        architecture: "one projection".into(),
        shape: ModelShape {
            hidden: cols,
            mlp: 1,
            layers: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            vocab: rows,
            context: 64,
        },
        norm_eps: 1e-5,
        rope: Rope { inverse_frequencies: vec![1.0] },
        matrices: vec![spec("embed", rows, cols), spec("lm_head", rows, cols)],
        vectors: specs,
        linears: vec![Linear { path: "lm_head".into(), matrix: MatrixId(1), bias }],
        steps: vec![
            Step::Embed { table: MatrixId(0) },
            Step::Project {
                norm,
                input: Slot::Residual,
                linears: vec![LinearId(0)],
                output: Output::Store(vec![Slot::Logits]),
            },
        ],
    };
    let mut table = random_matrix(rng, rows, cols, Store::F32);
    // Inputs of unit size, as after a norm.
    let values: Vec<f32> = rng.normals(rows * cols, 1.0);
    table.storage = calora::weights::Storage::Dense(
        calora::weights::Tensor::from_f32("embed.weight", &[rows, cols], &values).unwrap(),
    );
    let matrices = vec![table, random_matrix(rng, rows, cols, store)];
    Model { recipe: Arc::new(recipe), weights: Arc::new(Weights { matrices, vectors }) }
}

/// Fails with the worst element where values differ by more than `tolerance` of the largest expected one.
pub fn assert_close(what: &str, actual: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let worst = (0..actual.len())
        .map(|i| (i, (f64::from(actual[i]) - expected[i]).abs()))
        .map(|(i, e)| (i, if e.is_nan() { f64::INFINITY } else { e }))
        .fold((0, 0.0), |worst, now| if now.1 > worst.1 { now } else { worst });
    let (at, error) = worst;
    assert!(
        error <= tolerance * largest,
        "{what}: element {at} is {} instead of {}; error {:.2e} of max |y| {largest:.3}, allowed {tolerance:.0e}",
        actual[at],
        expected[at],
        error / largest,
    );
}

/// A tail with the branches of one only linear.
pub fn tail_of(branches: Vec<calora::adapter::Branch>) -> Tail {
    Tail { branches: vec![branches] }
}
