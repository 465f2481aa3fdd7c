//! What several integration tests share: random models in memory, error measures.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::path::Path;
use std::sync::Arc;

use calora::adapter::{Branch, BranchKind, LowRank, Tail};
use calora::arch::Recipe;
use calora::device::{Model, Weights};
use calora::quant::{Bits, Group, Scheme, pack::pack_row};
use calora::weights::{DType, Matrix, Tensor};
use half::{bf16, f16};

/// SplitMix64: the same numbers everywhere, from a seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Normal with standard deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        let u = self.uniform().max(1e-7);
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * self.uniform()).cos()
    }

    pub fn normals(&mut self, n: usize, std: f32) -> Vec<f32> {
        (0..n).map(|_| self.normal() * std).collect()
    }
}

/// How a random matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Store {
    F32,
    F16,
    BF16,
    Packed(Scheme),
}

/// int4/int8 schemes by their usual names.
pub const fn scheme(bits: Bits, group: Option<usize>, symmetric: bool) -> Store {
    let group = match group {
        Some(size) => Group::Size(size),
        None => Group::Channel,
    };
    Store::Packed(Scheme { bits, group, symmetric })
}

/// A float tensor of the given type from float32 values.
pub fn float_tensor(name: &str, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
    match dtype {
        DType::F32 => Tensor::from_f32(name, shape, values).unwrap(),
        DType::F16 => {
            let v: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            Tensor::from_slice(name, dtype, shape, &v).unwrap()
        }
        DType::BF16 => {
            let v: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
            Tensor::from_slice(name, dtype, shape, &v).unwrap()
        }
        other => panic!("{other:?} is not a float type"),
    }
}

/// A random matrix whose products keep the size of their input.
pub fn random_matrix(rng: &mut Random, rows: usize, cols: usize, store: Store) -> Matrix {
    let std = 1.2 / (cols as f32).sqrt();
    let dtype = match store {
        Store::F32 => DType::F32,
        Store::F16 => DType::F16,
        Store::BF16 => DType::BF16,
        Store::Packed(scheme) => return random_packed(rng, rows, cols, scheme, std),
    };
    let values = rng.normals(rows * cols, std);
    Matrix::dense(float_tensor("random.weight", dtype, &[rows, cols], &values)).unwrap()
}

fn random_packed(rng: &mut Random, rows: usize, cols: usize, scheme: Scheme, std: f32) -> Matrix {
    let (levels, groups) = (1usize << scheme.bits.count(), scheme.groups(cols));
    let mut words = Vec::new();
    for _ in 0..rows {
        let row: Vec<u8> = (0..cols).map(|_| rng.below(levels) as u8).collect();
        pack_row(scheme.bits, &row, &mut words);
    }
    // Uniform integers have a standard deviation of levels / sqrt(12).
    let scale = std * 12f32.sqrt() / levels as f32;
    let scales: Vec<f32> = (0..rows * groups).map(|_| scale * (0.5 + rng.uniform())).collect();
    let zeros = (!scheme.symmetric).then(|| {
        let mut packed = vec![0u32; scheme.bits.words(rows) * groups];
        for g in 0..groups {
            let column: Vec<u8> =
                (0..rows).map(|_| (levels / 2 - levels / 8 + rng.below(levels / 4)) as u8).collect();
            let mut one = Vec::new();
            pack_row(scheme.bits, &column, &mut one);
            for (r, word) in one.into_iter().enumerate() {
                packed[r * groups + g] = word;
            }
        }
        let shape = [scheme.bits.words(rows), groups];
        Tensor::from_slice("random.weight_zero_point", DType::I32, &shape, &packed).unwrap()
    });
    Matrix::packed(
        rows,
        cols,
        scheme,
        Tensor::from_slice("random.weight_packed", DType::I32, &[rows, scheme.words(cols)], &words).unwrap(),
        float_tensor("random.weight_scale", DType::F16, &[rows, groups], &scales),
        zeros,
    )
    .unwrap()
}

/// A small Llama configuration; tests change fields.
pub fn small_config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 120, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false
    })
}

/// Random weights for a recipe; matrices whose width the group does not divide are stored per channel.
pub fn random_model(config: &serde_json::Value, store: Store, seed: u64) -> Model {
    let recipe = calora::arch::recipe(config, Path::new("config.json")).unwrap();
    let mut rng = Random(seed);
    let matrices = recipe
        .matrices
        .iter()
        .map(|m| {
            let store = match store {
                Store::Packed(s) if s.check(m.cols).is_err() => {
                    Store::Packed(Scheme { group: Group::Channel, ..s })
                }
                // The embedding is dense in the files that people have, unless it doubles as the head.
                Store::Packed(_) if m.path == "model.embed_tokens" && m.alias.is_none() => Store::F16,
                other => other,
            };
            random_matrix(&mut rng, m.rows, m.cols, store)
        })
        .collect();
    let vectors = recipe
        .vectors
        .iter()
        .map(|v| {
            let mean = if v.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            (0..v.len).map(|_| mean + 0.3 * rng.normal()).collect()
        })
        .collect();
    Model { recipe: Arc::new(recipe), weights: Arc::new(Weights { matrices, vectors }) }
}

/// A random branch that moves its linear's output by about `size` of it.
pub fn random_branch(
    rng: &mut Random,
    kind: BranchKind,
    (rows, cols): (usize, usize),
    rank: usize,
    dtype: DType,
    size: f32,
) -> Branch {
    let down = rng.normals(rank * cols, 1.0 / (cols as f32).sqrt());
    let up = rng.normals(rows * rank, size / (rank as f32).sqrt());
    Branch {
        kind,
        scaling: 1.5,
        down: LowRank::Float(float_tensor("down", dtype, &[rank, cols], &down)),
        up: LowRank::Float(float_tensor("up", dtype, &[rows, rank], &up)),
    }
}

/// Branches on every linear: LoRA of rank `lora` and recovery of rank `recovery` (0 for none).
pub fn random_tail(recipe: &Recipe, lora: usize, recovery: usize, dtype: DType, seed: u64) -> Tail {
    let mut rng = Random(seed);
    let branches = (0..recipe.linears.len())
        .map(|id| {
            let shape = recipe.linear_shape(calora::arch::LinearId(id));
            [(BranchKind::Lora, lora), (BranchKind::Recovery, recovery)]
                .into_iter()
                .filter(|(_, rank)| *rank > 0)
                .map(|(kind, rank)| random_branch(&mut rng, kind, shape, rank, dtype, 0.5))
                .collect()
        })
        .collect();
    Tail { branches }
}

/// Normalised mean squared error: |a - b|² / |b|².
pub fn nmse(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    let (mut error, mut norm) = (0.0, 0.0);
    for (a, b) in actual.iter().zip(expected) {
        error += (f64::from(*a) - f64::from(*b)).powi(2);
        norm += f64::from(*b).powi(2);
    }
    error / norm.max(f64::MIN_POSITIVE)
}

/// The folder with other people's checkpoints, named by `CALORA_TEST_DATA`; `None` says on stderr what is left out.
pub fn test_data(what: &str) -> Option<std::path::PathBuf> {
    let folder = std::env::var_os("CALORA_TEST_DATA").map(std::path::PathBuf::from);
    if folder.is_none() {
        // Written past the test harness, which shows nothing of what a passing test prints by macro.
        let line = format!("LEFT OUT (set CALORA_TEST_DATA to run it): {what}\n");
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    }
    folder
}
