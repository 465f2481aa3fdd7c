//! Moments against transformers' hooks, factors against numpy's eigenvalues.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use calora::Error;
use calora::device::Model;
use calora::weights::{ModelFolder, SafetensorsFile};
use calora_models::calibrate::{Calibration, Moment, collect};
use calora_models::residual::{Factors, factors, gelu_factors};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn model(name: &str) -> Model {
    let folder = ModelFolder::open(root().join("tests/golden").join(name)).unwrap();
    let recipe = calora::arch::recipe(folder.config(), folder.config_path()).unwrap();
    let weights = folder.weights(&recipe).unwrap();
    Model { recipe: Arc::new(recipe), weights: Arc::new(weights) }
}

fn golden() -> SafetensorsFile {
    SafetensorsFile::open(root().join("models/tests/golden/moments.safetensors")).unwrap()
}

fn values(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    file.tensor(name).unwrap().to_f32().unwrap()
}

/// The sequences that the golden moments are of.
fn sequences() -> Vec<Vec<u32>> {
    let file = SafetensorsFile::open(root().join("tests/golden/gqa/golden.safetensors")).unwrap();
    let ids = file.raw("ids").unwrap().2;
    let ids: Vec<u32> = ids.as_chunks::<8>().0.iter().map(|id| i64::from_le_bytes(*id) as u32).collect();
    vec![ids[..20].to_vec(), ids[20..].to_vec()]
}

#[test]
fn moments_are_those_of_transformers() {
    let (model, file, sequences) = (model("gqa"), golden(), sequences());
    let mut last = (0, 0);
    let moments = collect(&model, None, &sequences, &|_| true, |done, all| last = (done, all)).unwrap();
    // The embedding, attention and MLP of three layers, the head.
    assert_eq!(last, (8, 8));
    assert_eq!(moments.paths().count(), 21);
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    for path in file.names().filter(|name| name.starts_with("model.")) {
        let moment = moments.get(path).unwrap_or_else(|| panic!("{path} was not seen"));
        let want = values(&file, path);
        assert_eq!(moment.tokens, tokens);
        let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let worst = moment.sum.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Measured 6e-7; one row left out or counted twice gives 1e-2.
        assert!(worst < 1e-5 * scale, "{path}: {worst} of {scale}");
    }
    let get = |path: &str| moments.get(path).unwrap();
    let layer = "model.layers.1";
    let shared = get(&format!("{layer}.self_attn.q_proj"));
    assert!(Arc::ptr_eq(&shared, &get(&format!("{layer}.self_attn.v_proj"))));
    assert!(Arc::ptr_eq(&get(&format!("{layer}.mlp.gate_proj")), &get(&format!("{layer}.mlp.up_proj"))));
    assert!(!Arc::ptr_eq(&shared, &get(&format!("{layer}.self_attn.o_proj"))));
}

#[test]
fn windows_give_what_the_whole_gives() {
    let (model, sequences) = (model("gqa"), sequences());
    let all = collect(&model, None, &sequences, &|_| true, |_, _| ()).unwrap();
    let wanted = |path: &str| path.contains("layers.1.") && !path.ends_with("k_proj");
    let some = collect(&model, None, &sequences, &wanted, |_, _| ()).unwrap();
    assert_eq!(some.paths().count(), 6);
    for path in some.paths() {
        assert!(wanted(path), "{path}");
        assert_eq!(some.get(path), all.get(path), "{path}");
    }
    // Stage by stage, each first looked at, then left behind.
    let mut calibration = Calibration::new(&model, None, &sequences, Some(1)).unwrap();
    let mut seen = 0;
    while let Some(linears) = calibration.linears() {
        let peeked = calibration.peek(&|_| true).unwrap().unwrap();
        let taken = calibration.next(&|_| true).unwrap().unwrap();
        for path in linears.iter().filter(|path| *path != "lm_head") {
            assert_eq!(peeked.get(path), taken.get(path));
            let (a, b) = (taken.get(path).unwrap(), all.get(path).unwrap());
            let worst =
                a.sum.iter().zip(&b.sum).map(|(a, b)| (a - b).abs() / b.abs().max(1e-3)).fold(0.0, f32::max);
            assert!(worst < 1e-3, "{path}: {worst}");
            seen += 1;
        }
    }
    assert_eq!(seen, 21);
    assert!(calibration.next(&|_| true).unwrap().is_none());
}

#[test]
fn an_adapter_and_other_weights_change_what_comes_after_them() {
    let (model, sequences) = (model("gqa"), sequences());
    let adapter = calora::adapter::TaskAdapter::open(root().join("tests/golden/gqa/adapters/all")).unwrap();
    let (tail, _) = adapter.bind(&model.recipe, &calora::weights::BaseIds::default()).unwrap();
    let plain = collect(&model, None, &sequences, &|_| true, |_, _| ()).unwrap();
    let with = collect(&model, Some(&tail), &sequences, &|_| true, |_, _| ()).unwrap();
    let get = |m: &calora_models::calibrate::Moments, path: &str| m.get(path).unwrap();
    // What goes into the first layer's attention is the embedding: the adapter has not been met yet.
    let first = "model.layers.0.self_attn.q_proj";
    assert_eq!(get(&plain, first), get(&with, first));
    let later = "model.layers.0.mlp.down_proj";
    assert_ne!(get(&plain, later), get(&with, later));

    // The MLP of layer 0 without its down projection: layer 1 sees the difference, layer 0 does not.
    let mut weights = (*model.weights).clone();
    let id = model.recipe.linear(later).unwrap();
    let (rows, cols) = model.recipe.linear_shape(id);
    let zeros = calora::weights::Tensor::from_f32(later, &[rows, cols], &vec![0.0; rows * cols]).unwrap();
    weights.matrices[model.recipe.linears[id.0].matrix.0] = calora::weights::Matrix::dense(zeros).unwrap();
    let mut calibration = Calibration::new(&model, None, &sequences, None).unwrap();
    calibration.advance().unwrap();
    calibration.advance().unwrap();
    assert_eq!(calibration.peek(&|_| true).unwrap().unwrap().get(later), plain.get(later));
    calibration.replace(Model { weights: Arc::new(weights), ..model }).unwrap();
    assert_eq!(calibration.next(&|_| true).unwrap().unwrap().get(later), plain.get(later));
    let next = "model.layers.1.self_attn.q_proj";
    assert_ne!(calibration.next(&|_| true).unwrap().unwrap().get(next), plain.get(next));
}

#[test]
fn what_cannot_be_calibrated_on_is_refused() {
    let model = model("gqa");
    let run = |sequences: &[Vec<u32>]| collect(&model, None, sequences, &|_| true, |_, _| ()).unwrap_err();
    assert!(matches!(run(&[]), Error::EmptyPrompt));
    assert!(matches!(run(&[vec![1], vec![]]), Error::EmptyPrompt));
    assert!(matches!(run(&[vec![1; 129]]), Error::ContextFull { needed: 129, available: 128 }));
    assert!(matches!(run(&[vec![128]]), Error::TokenOutOfRange { id: 128, .. }));
}

/// What is left of a residual behind factors, under a moment or plain.
fn left(residual: &[f32], rows: usize, f: &Factors, moment: Option<&Moment>) -> f64 {
    let cols = residual.len() / rows;
    let mut left = residual.to_vec();
    for (left, up) in left.chunks_mut(cols).zip(f.up.chunks(f.rank)) {
        for (up, down) in up.iter().zip(f.down.chunks(cols)) {
            left.iter_mut().zip(down).for_each(|(l, d)| *l -= up * d);
        }
    }
    match moment {
        Some(moment) => moment.energy(&left),
        None => left.iter().map(|v| f64::from(*v).powi(2)).sum(),
    }
}

#[test]
fn factors_leave_as_little_as_is_possible() {
    let file = golden();
    let residual = values(&file, "residual");
    let (rows, cols) = (64, 112);
    let sum = values(&file, "model.layers.2.mlp.down_proj");
    let moment = Moment { size: cols, tokens: 1, sum };
    for (name, moment) in [("best", Some(&moment)), ("best_plain", None)] {
        let best = values(&file, name);
        let none = factors(&residual, rows, moment, 0).unwrap();
        assert!(
            (left(&residual, rows, &none_of_rank_one(&none, rows, cols), moment) / f64::from(best[0]) - 1.0)
                .abs()
                < 1e-4
        );
        for (rank, best) in [1, 4, 16].into_iter().zip(&best[1..]) {
            let f = factors(&residual, rows, moment, rank).unwrap();
            assert_eq!((f.down.len(), f.up.len()), (rank * cols, rows * rank));
            let left = left(&residual, rows, &f, moment);
            let ratio = left / f64::from(*best);
            assert!((0.9999..1.002).contains(&ratio), "{name} rank {rank}: {ratio} of the least possible");
            for i in 0..rank {
                let down: f32 = f.down[i * cols..(i + 1) * cols].iter().map(|v| v * v).sum();
                let up: f32 = f.up.iter().skip(i).step_by(rank).map(|v| v * v).sum();
                assert!((up / down - 1.0).abs() < 1e-3, "{name} pair {i}: {up} and {down}");
            }
        }
        // All of it, and more than there is.
        for rank in [64, 70] {
            let f = factors(&residual, rows, moment, rank).unwrap();
            assert!(left(&residual, rows, &f, moment) < 1e-8 * f64::from(best[0]), "{name} rank {rank}");
        }
    }
    // The weights matter: plain factors are worse under the moment, and the other way round.
    let (plain, weighted) =
        (factors(&residual, rows, None, 4).unwrap(), factors(&residual, rows, Some(&moment), 4).unwrap());
    let under = |f: &Factors, m| left(&residual, rows, f, m);
    assert!(under(&plain, Some(&moment)) > 1.05 * under(&weighted, Some(&moment)));
    assert!(under(&weighted, None) > 1.01 * under(&plain, None));
}

/// Rank 0 as one pair of zeros.
fn none_of_rank_one(f: &Factors, rows: usize, cols: usize) -> Factors {
    assert!(f.rank == 0 && f.up.is_empty() && f.down.is_empty());
    Factors { rank: 1, down: vec![0.0; cols], up: vec![0.0; rows] }
}

#[test]
fn a_mirrored_gelu_is_the_linear_correction() {
    let file = golden();
    let residual = values(&file, "residual");
    let (rows, cols, rank) = (64, 112, 8);
    let linear = factors(&residual, rows, None, rank).unwrap();
    let gelu = gelu_factors(&residual, rows, None, 2 * rank).unwrap();
    assert_eq!(gelu, linear.mirrored());
    assert_eq!(gelu.rank, 2 * rank);
    let x: Vec<f32> = (0..cols).map(|i| ((i * 29) % 17) as f32 / 3.0 - 2.5).collect();
    let apply = |f: &Factors, activation: &dyn Fn(f64) -> f64| -> Vec<f64> {
        let product =
            |row: &[f32]| row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let inner: Vec<f64> = f.down.chunks(cols).map(|row| activation(product(row))).collect();
        f.up.chunks(f.rank).map(|row| row.iter().zip(&inner).map(|(a, b)| f64::from(*a) * b).sum()).collect()
    };
    let tanh_gelu = |z: f64| 0.5 * z * (1.0 + (0.797_884_560_802_865_4 * (z + 0.044_715 * z.powi(3))).tanh());
    for (a, b) in apply(&linear, &|z| z).into_iter().zip(apply(&gelu, &tanh_gelu)) {
        assert!((a - b).abs() < 1e-12, "{a} {b}");
    }
    assert!(gelu_factors(&residual, rows, None, 5).unwrap_err().to_string().contains("even"));
}

#[test]
fn odd_residuals() {
    // Nothing to correct, less rank than asked for, numbers that are none, lengths that do not fit.
    let zero = factors(&[0.0; 12], 3, None, 2).unwrap();
    assert!(zero.up.iter().chain(&zero.down).all(|v| *v == 0.0));
    let one: Vec<f32> = (0..12).map(|i| ((i / 4 + 1) * (i % 4 + 1)) as f32).collect();
    let f = factors(&one, 3, None, 3).unwrap();
    assert!(left(&one, 3, &f, None) < 1e-9 && f.up.iter().all(|v| v.is_finite()));
    assert!(factors(&[1.0, f32::NAN], 1, None, 1).unwrap_err().to_string().contains("not finite"));
    assert!(factors(&[1.0; 7], 3, None, 1).is_err());
    let moment = Moment { size: 3, tokens: 1, sum: vec![0.0; 9] };
    assert!(factors(&[1.0; 8], 2, Some(&moment), 1).unwrap_err().to_string().contains("moment"));
    // An input that is always zero needs no correction.
    let moment = Moment { size: 4, tokens: 1, sum: vec![0.0; 16] };
    let f = factors(&one, 3, Some(&moment), 2).unwrap();
    assert!(f.up.iter().chain(&f.down).all(|v| *v == 0.0), "{f:?}");
}
