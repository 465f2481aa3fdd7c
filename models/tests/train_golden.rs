//! Losses and gradients of a training step against PyTorch's: `tests/golden/train`, made by `tests/golden/train.py`.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use calora::adapter::TaskAdapter;
use calora::arch;
use calora::weights::{ModelFolder, SafetensorsFile};
use calora_models::train::batch::Batch;
use calora_models::train::branches::Branches;
use calora_models::train::data::Example;
use calora_models::train::forward::{Pass, Plan};
use calora_models::train::frozen::Frozen;
use calora_models::train::gradients::gradients;
use calora_models::train::loss::{LossWeights, Teacher, Totals};
use serde::Deserialize;

/// `expected.json`.
#[derive(Deserialize)]
struct Expected {
    ids: Vec<Vec<u32>>,
    counted: Vec<Vec<bool>>,
    losses: Losses,
}

#[derive(Deserialize)]
struct Losses {
    ce: f64,
    mse: f64,
    kl: f64,
}

fn model(folder: &Path, dtype: DType) -> Frozen {
    let files = ModelFolder::open(folder).unwrap();
    let recipe = arch::recipe(files.config(), files.config_path()).unwrap();
    let weights = files.weights(&recipe).unwrap();
    Frozen::new(Arc::new(recipe), Arc::new(weights), &Device::flex(), dtype, 1 << 30)
}

fn branches(model: &Frozen, adapter: &Path) -> Branches {
    let (tail, _) = TaskAdapter::open(adapter).unwrap().bind(&model.recipe, &Default::default()).unwrap();
    Branches::from_tail(&tail, &model.device, model.dtype).unwrap()
}

fn nmse(actual: &[f64], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let error: f64 = actual.iter().zip(expected).map(|(a, e)| (a - f64::from(*e)).powi(2)).sum();
    error / expected.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>()
}

fn values(tensor: Tensor<2>) -> Vec<f64> {
    tensor.cast(DType::F64).try_into_vec_as::<f64>().unwrap()
}

/// Compares everything that is expected of one fixture; the worst NMSE of a gradient.
fn compare(folder: &Path, dtype: DType) -> f64 {
    let text = std::fs::read(folder.join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_slice(&text).unwrap();
    let file = SafetensorsFile::open(folder.join("expected.safetensors")).unwrap();
    let (base, compressed) = (model(&folder.join("base"), dtype), model(&folder.join("compressed"), dtype));
    let (lora, student) =
        (branches(&base, &folder.join("lora")), branches(&compressed, &folder.join("student.safetensors")));
    let examples: Vec<Example> = expected.ids.iter().zip(&expected.counted).map(example).collect();
    let chosen: Vec<&Example> = examples.iter().collect();
    let batch = Batch::new(&chosen, &base.recipe, &base.device, dtype);
    let plan = Plan::new(&base.recipe).unwrap();
    let head = Pass { model: &base, branches: &lora, batch: &batch };
    let hidden = head.last_hidden(&plan).unwrap();
    let states = file.tensor("teacher_hidden").unwrap().to_f32().unwrap();
    // A batch may hold its rows in another order than they were given in.
    let rows: Vec<f64> =
        batch.rows.iter().flat_map(|r| values(hidden.clone().narrow(0, r.start, r.len()))).collect();
    assert!(nmse(&rows, &states) < 1e-9, "the teacher's states");

    let totals = Totals {
        counted: examples.iter().map(Example::counted).sum(),
        teacher_square: values(hidden.clone()).iter().map(|v| v * v).sum(),
    };
    let pass = Pass { model: &compressed, branches: &student, batch: &batch };
    let names = student.names(&compressed.recipe);
    let mut found = BTreeSet::new();
    let mut worst = 0.0f64;
    for (variant, weights) in [
        ("hidden", LossWeights { hidden: 0.5, logits: 0.0 }),
        ("logits", LossWeights { hidden: 0.0, logits: 0.5 }),
    ] {
        let head = Pass { model: &base, branches: &lora, batch: &batch };
        let teacher = Teacher { hidden: hidden.clone(), head };
        let (terms, gradients) = gradients(&pass, &plan, 0, Some(&teacher), &weights, &totals).unwrap();
        let close = |name: &str, actual: f64, expected: f64| {
            assert!((actual - expected).abs() < 1e-5, "{variant} {name}: {actual}, PyTorch {expected}");
        };
        close("cross-entropy", terms.cross_entropy, expected.losses.ce);
        if variant == "hidden" {
            close("hidden term", terms.hidden, expected.losses.mse);
        } else {
            close("logit term", terms.logits, expected.losses.kl);
        }
        for (name, gradient) in names.iter().zip(gradients) {
            let name = format!("{variant}.{name}");
            let error = nmse(&values(gradient), &file.tensor(&name).unwrap().to_f32().unwrap());
            assert!(error < 1e-6, "{name}: NMSE {error:.1e}");
            worst = worst.max(error);
            found.insert(name);
        }
    }
    assert_eq!(
        found.len(),
        2 * 2 * 2 * 7 * 2,
        "two layers, seven linears, two branches of two tensors, twice"
    );
    worst
}

fn example((ids, counted): (&Vec<u32>, &Vec<bool>)) -> Example {
    let first = counted.iter().position(|c| *c).unwrap();
    assert!(counted[first..].iter().all(|c| *c));
    Example { ids: ids.clone(), first }
}

#[test]
fn a_step_agrees_with_pytorch() {
    for name in ["untied", "tied"] {
        let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/train").join(name);
        for dtype in [DType::F64, DType::F32] {
            println!("{name} in {dtype:?}: worst gradient NMSE {:.1e}", compare(&folder, dtype));
        }
    }
}
