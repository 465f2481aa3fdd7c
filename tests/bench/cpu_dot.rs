//! How fast the CPU device multiplies: one compressed linear, per instruction set, activations, threads and tokens.
//!
//! `cargo bench --bench cpu_dot` prints a table, with `-- --json` JSON lines. The variants of a shape take turns, so that
//! whatever else the machine does meets all of them alike; the best round counts, for others measure the neighbours.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use calora::arch::{Linear, LinearId, MatrixId, MatrixSpec, ModelShape, Output, Recipe, Rope, Slot, Step};
use calora::cpu::{CpuDevice, CpuOptions, Simd};
use calora::device::{Activations, CacheId, Device, Forward, Model, Want, Weights};
use calora::quant::{Bits, Group, Scheme};
use calora::weights::{DType, Matrix, Tensor};
use half::f16;

const ROUNDS: usize = 41;
const INPUTS: usize = 64;

struct Variant {
    simd: Simd,
    activations: Activations,
    threads: usize,
    device: CpuDevice,
    cache: CacheId,
    seconds: Vec<f64>,
}

fn main() {
    let json = std::env::args().any(|a| a == "--json");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (bits, rows, cols, tokens) in [
        (Bits::Int4, 2048, 2048, 1),
        (Bits::Int4, 8192, 2048, 1),
        (Bits::Int3, 8192, 2048, 1),
        (Bits::Int2, 8192, 2048, 1),
        (Bits::Int4, 2048, 8192, 1),
        (Bits::Int8, 8192, 2048, 1),
        (Bits::Int4, 2048, 2048, INPUTS),
        (Bits::Int3, 2048, 2048, INPUTS),
        (Bits::Int2, 2048, 2048, INPUTS),
        (Bits::Int8, 2048, 2048, INPUTS),
    ] {
        let model = one_linear(bits, rows, cols);
        let bytes = model.weights.matrices[1].byte_len() as f64;
        let mut variants = Vec::new();
        for simd in Simd::available() {
            for activations in [Activations::F32, Activations::Int8] {
                for threads in [1, cores] {
                    let options = CpuOptions {
                        threads: Some(threads),
                        activations,
                        max_tokens: INPUTS,
                        simd: Some(simd),
                    };
                    let mut device = CpuDevice::new(&model, options).unwrap();
                    let cache = device.create_cache(INPUTS).unwrap();
                    variants.push(Variant { simd, activations, threads, device, cache, seconds: Vec::new() });
                }
            }
        }
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let want = if tokens == 1 { Want::Argmax } else { Want::AllLogits };
        for round in 0..=ROUNDS {
            for v in &mut variants {
                let start = Instant::now();
                v.device
                    .forward(&Forward {
                        tokens: &ids,
                        position: 0,
                        cache: v.cache,
                        tail: None,
                        scales: &[],
                        want,
                    })
                    .unwrap();
                // The first round warms up.
                if round > 0 {
                    v.seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
        for v in &mut variants {
            v.seconds.sort_by(f64::total_cmp);
            let (best, median) = (v.seconds[0], v.seconds[ROUNDS / 2] * 1e6);
            let (us, gbs) = (best * 1e6, bytes / best / 1e9);
            let gops = 2.0 * (rows * cols * tokens) as f64 / best / 1e9;
            let (bits, simd) = (bits.count(), format!("{:?}", v.simd));
            let (activations, threads) = (format!("{:?}", v.activations), v.threads);
            if json {
                println!(
                    "{{\"bits\":{bits},\"rows\":{rows},\"cols\":{cols},\"tokens\":{tokens},\"simd\":\"{simd}\",\
                     \"activations\":\"{activations}\",\"threads\":{threads},\"us\":{us:.1},\"median_us\":{median:.1},\
                     \"weight_gb_per_s\":{gbs:.2},\"gop_per_s\":{gops:.1}}}"
                );
            } else {
                println!(
                    "int{bits} g32 {rows}x{cols} T={tokens:<3} {simd:9} {activations:5} {threads}t \
                     {us:9.1} us {gbs:6.2} GB/s {gops:7.1} Gop/s"
                );
            }
        }
    }
}

/// A recipe of one linear: the embedding's rows are its inputs, the logits its outputs.
fn one_linear(bits: Bits, rows: usize, cols: usize) -> Model {
    let shape = ModelShape {
        hidden: cols,
        mlp: 1,
        layers: 0,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        vocab: rows,
        context: INPUTS,
    };
    let spec = |path: &str, rows| MatrixSpec { path: path.into(), alias: None, rows, cols };
    let recipe = Recipe {
        architecture: "bench".into(),
        shape,
        norm_eps: 1e-5,
        rope: Rope { inverse_frequencies: vec![1.0] },
        matrices: vec![spec("inputs", INPUTS), spec("linear", rows)],
        vectors: vec![],
        linears: vec![Linear { path: "linear".into(), matrix: MatrixId(1), bias: None }],
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
    let scheme = Scheme { bits, group: Group::Size(32), symmetric: true };
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let inputs: Vec<f32> = (0..INPUTS * cols).map(|_| (random() % 2001) as f32 / 1000.0 - 1.0).collect();
    let words: Vec<u32> = (0..rows * scheme.words(cols)).map(|_| random() as u32).collect();
    let scales: Vec<f16> = (0..rows * scheme.groups(cols))
        .map(|_| f16::from_f32(0.01 + (random() % 100) as f32 * 1e-4))
        .collect();
    let tensor = |shape: [usize; 2]| Tensor::from_f32("inputs", &shape, &inputs).unwrap();
    let words = Tensor::from_slice("words", DType::I32, &[rows, scheme.words(cols)], &words).unwrap();
    let scales = Tensor::from_slice("scales", DType::F16, &[rows, scheme.groups(cols)], &scales).unwrap();
    let matrices = vec![
        Matrix::dense(tensor([INPUTS, cols])).unwrap(),
        Matrix::packed(rows, cols, scheme, words, scales, None).unwrap(),
    ];
    Model { recipe: Arc::new(recipe), weights: Arc::new(Weights { matrices, vectors: vec![] }) }
}
