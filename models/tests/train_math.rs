//! The trainer's mathematics: its forward pass against transformers' and peft's logits, its gradients against finite
//! differences in float64, and against each other however many blocks are held.
#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use calora::adapter::TaskAdapter;
use calora::arch;
use calora::weights::{ModelFolder, SafetensorsFile};
use calora_models::train::batch::Batch;
use calora_models::train::branches::{Branches, Values};
use calora_models::train::data::Example;
use calora_models::train::forward::{Pass, Plan};
use calora_models::train::frozen::Frozen;
use calora_models::train::gradients::gradients;
use calora_models::train::loss::{LossTerms, LossWeights, Teacher, Totals};

const CASES: &[&str] = &["plain", "gqa", "llama3", "old_keys", "biases", "tied", "head_dim", "wide"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(case)
}

fn frozen(case: &str, device: &Device, dtype: DType, budget: u64) -> Frozen {
    let files = ModelFolder::open(folder(case)).unwrap();
    let recipe = arch::recipe(files.config(), files.config_path()).unwrap();
    let weights = files.weights(&recipe).unwrap();
    Frozen::new(Arc::new(recipe), Arc::new(weights), device, dtype, budget)
}

fn branches(model: &Frozen, adapter: &Path) -> Branches {
    let adapter = TaskAdapter::open(adapter).unwrap();
    let (tail, _) = adapter.bind(&model.recipe, &Default::default()).unwrap();
    Branches::from_tail(&tail, &model.device, model.dtype).unwrap()
}

fn golden(path: &Path) -> (Vec<u32>, Vec<f32>) {
    let file = SafetensorsFile::open(path).unwrap();
    let ids = file.tensor("ids").unwrap().elements::<i64>().iter().map(|id| *id as u32).collect();
    (ids, file.tensor("logits").unwrap().to_f32().unwrap())
}

fn nmse(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let square = |v: f32| f64::from(v).powi(2);
    let error: f64 = actual.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    error / expected.iter().map(|v| square(*v)).sum::<f64>()
}

/// Logits of all positions of `ids`, computed in one batch with shorter and longer sequences around it.
fn logits(model: &Frozen, branches: &Branches, ids: &[u32]) -> Vec<f32> {
    let example = |ids: &[u32]| Example { ids: [ids, &[1]].concat(), first: 1 };
    let other: Vec<u32> = ids.iter().rev().chain(&ids[..5]).copied().collect();
    let batch = [example(&ids[..3]), example(ids), example(&other)];
    let batch = Batch::new(&batch.iter().collect::<Vec<_>>(), &model.recipe, &model.device, model.dtype);
    let plan = Plan::new(&model.recipe).unwrap();
    let pass = Pass { model, branches, batch: &batch };
    let rows = batch.rows[1].clone();
    let hidden = pass.last_hidden(&plan).unwrap().narrow(0, rows.start, rows.len());
    pass.logits(&plan, hidden).unwrap().try_into_vec_as::<f32>().unwrap()
}

#[test]
fn forward_agrees_with_transformers_and_peft() {
    let refused = ["dora", "modules_to_save", "lora_bias", "bias_all", "bias_lora_only"];
    let (mut count, mut worst) = (0, 0.0f64);
    for case in CASES {
        let model = frozen(case, &Device::flex(), DType::F32, 1 << 30);
        let none = Branches::none(model.recipe.linears.len());
        let mut check = |branches: &Branches, file: &Path| {
            let (ids, expected) = golden(file);
            let error = nmse(&logits(&model, branches, &ids), &expected);
            assert!(error <= 1e-9, "{}: NMSE {error:.1e}", file.display());
            (count, worst) = (count + 1, worst.max(error));
        };
        check(&none, &folder(case).join("golden.safetensors"));
        for (kind, golden_in) in [("adapters", folder(case)), ("recovery", folder(case).join("recovery"))] {
            let Ok(entries) = std::fs::read_dir(folder(case).join(kind)) else { continue };
            for entry in entries {
                let path = entry.unwrap().path();
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                if !refused.contains(&name.as_str()) && !name.starts_with("golden") {
                    check(&branches(&model, &path), &golden_in.join(format!("golden_{name}.safetensors")));
                }
            }
        }
    }
    assert!(count >= 27, "only {count} goldens found");
    println!("{count} goldens, worst NMSE {worst:.1e}");
}

/// A student, its teacher's hidden states, and a batch of three rows of different lengths.
struct Setting {
    model: Frozen,
    teacher: Frozen,
    branches: Branches,
    lora: Branches,
    examples: Vec<Example>,
}

impl Setting {
    /// The golden model `gqa` with a LoRA and recovery beside every linear; the teacher is another golden's weights, so
    /// that the two differ.
    fn new(device: &Device, dtype: DType, budget: u64) -> Self {
        let model = frozen("gqa", device, dtype, budget);
        let branches = branches(&model, &folder("gqa").join("recovery/lora_recovery.safetensors"));
        let lora = self::branches(&model, &folder("gqa").join("adapters/all"));
        let teacher = frozen("gqa", device, dtype, budget);
        let example = |ids: &[u32], first| Example { ids: ids.to_vec(), first };
        let examples = vec![
            example(&[1, 17, 30, 99, 4, 2], 3),
            example(&[1, 5, 6, 120, 64, 33, 7, 90, 21, 2], 1),
            example(&[1, 77, 2], 2),
        ];
        Self { model, teacher, branches, lora, examples }
    }

    fn compute(&self, held: usize, weights: &LossWeights) -> (LossTerms, Vec<Vec<f64>>) {
        self.compute_for(&self.branches, held, weights)
    }

    fn compute_for(
        &self,
        branches: &Branches,
        held: usize,
        weights: &LossWeights,
    ) -> (LossTerms, Vec<Vec<f64>>) {
        let plan = Plan::new(&self.model.recipe).unwrap();
        let examples: Vec<&Example> = self.examples.iter().collect();
        let batch = Batch::new(&examples, &self.model.recipe, &self.model.device, self.model.dtype);
        let head = Pass { model: &self.teacher, branches: &self.lora, batch: &batch };
        let hidden = head.last_hidden(&plan).unwrap();
        let square = hidden.clone().square().sum().try_into_scalar::<f64>().unwrap();
        let teacher = Teacher { hidden, head };
        let totals =
            Totals { counted: self.examples.iter().map(Example::counted).sum(), teacher_square: square };
        let pass = Pass { model: &self.model, branches, batch: &batch };
        let (terms, gradients) = gradients(&pass, &plan, held, Some(&teacher), weights, &totals).unwrap();
        (terms, gradients.into_iter().map(|g| g.try_into_vec_as::<f64>().unwrap()).collect())
    }
}

const WEIGHTS: LossWeights = LossWeights { hidden: 0.5, logits: 0.3 };

#[test]
fn gradients_agree_with_finite_differences() {
    let setting = Setting::new(&Device::flex(), DType::F64, 1 << 30);
    let (terms, gradients) = setting.compute(0, &WEIGHTS);
    assert!(terms.cross_entropy > 0.1 && terms.hidden > 1e-3 && terms.logits > 1e-4, "{terms:?}");
    let tensors: Vec<Tensor<2>> = setting.branches.tensors().cloned().collect();
    let values: Vec<Vec<f64>> = tensors.iter().map(|t| t.clone().try_into_vec_as::<f64>().unwrap()).collect();
    let (step, mut worst, mut checked) = (1e-5, 0.0f64, 0);
    for (index, tensor) in tensors.iter().enumerate().step_by(3) {
        let at = (index * 37 + 11) % values[index].len();
        let loss = |delta: f64| {
            let mut changed = values[index].clone();
            changed[at] += delta;
            let data = burn::tensor::TensorData::new(changed, tensor.dims());
            let mut all = tensors.clone();
            all[index] = Tensor::from_data(data, (&setting.model.device, DType::F64));
            setting.compute_for(&setting.branches.with(all), 0, &WEIGHTS).0.total(&WEIGHTS)
        };
        let numeric = (loss(step) - loss(-step)) / (2.0 * step);
        let exact = gradients[index][at];
        // The difference itself is known to about 1e-16 / 1e-5.
        let error = (numeric - exact).abs() / (numeric.abs() + exact.abs() + 1e-6);
        assert!(error < 1e-4, "tensor {index} element {at}: {exact:e}, by differences {numeric:e}");
        (worst, checked) = (worst.max(error), checked + 1);
    }
    println!("{checked} entries, worst relative error {worst:.1e}");
    assert!(checked >= 20);
}

/// With and without a second forward pass, with and without kept weights: the same numbers.
#[test]
fn blocks_held_do_not_change_gradients() {
    let setting = Setting::new(&Device::flex(), DType::F64, 1 << 30);
    let (terms, whole) = setting.compute(0, &WEIGHTS);
    let frugal = Setting::new(&Device::flex(), DType::F64, 0);
    for (held, setting) in [(1, &setting), (2, &setting), (4, &frugal)] {
        let (other, parts) = setting.compute(held, &WEIGHTS);
        assert!((other.total(&WEIGHTS) - terms.total(&WEIGHTS)).abs() < 1e-12);
        for (a, b) in whole.iter().zip(&parts) {
            let scale = a.iter().fold(0.0f64, |m, v| m.max(v.abs()));
            assert!(scale > 0.0, "a gradient is zero");
            assert!(
                a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-12 * scale + 1e-18),
                "{held} blocks held"
            );
        }
    }
}

/// Branches beside some linears only: gradients stop above layers that have none.
#[test]
fn layers_without_branches_are_passed_over() {
    let mut setting = Setting::new(&Device::flex(), DType::F64, 1 << 30);
    let (_, all) = setting.compute(0, &WEIGHTS);
    let mut expected = all.into_iter();
    let mut kept = Vec::new();
    for (list, linear) in setting.branches.of.iter_mut().zip(&setting.model.recipe.linears) {
        let own: Vec<_> = expected.by_ref().take(2 * list.len()).collect();
        if linear.path.contains("layers.2.mlp") { kept.extend(own) } else { list.clear() }
    }
    // Zero branches elsewhere would change the loss; compare held against whole on what is left.
    let (_, whole) = setting.compute(0, &WEIGHTS);
    let (_, parts) = setting.compute(1, &WEIGHTS);
    assert_eq!(whole.len(), kept.len());
    for (a, b) in whole.iter().zip(&parts) {
        assert!(a.iter().any(|v| *v != 0.0));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-14));
    }
}

#[test]
fn float32_is_close_to_float64() {
    let (_, exact) = Setting::new(&Device::flex(), DType::F64, 1 << 30).compute(0, &WEIGHTS);
    let (_, single) = Setting::new(&Device::flex(), DType::F32, 1 << 30).compute(0, &WEIGHTS);
    let worst = worst_relative(&single, &exact);
    println!("float32 against float64: {worst:.1e} of the largest entry");
    assert!(worst < 1e-4, "{worst:.1e}");
}

/// wgpu on any Vulkan device; software counts. Never float64 there: lavapipe claims it and computes garbage.
#[cfg(feature = "train-gpu")]
#[test]
fn gpu_gradients_are_close_to_float64() {
    let gpu = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    let (terms, exact) = Setting::new(&Device::flex(), DType::F64, 1 << 30).compute(0, &WEIGHTS);
    let (other, single) = Setting::new(&gpu, DType::F32, 1 << 30).compute(0, &WEIGHTS);
    assert!((terms.total(&WEIGHTS) - other.total(&WEIGHTS)).abs() < 1e-4, "{terms:?} {other:?}");
    let worst = worst_relative(&single, &exact);
    println!("wgpu against float64: {worst:.1e} of the largest entry");
    assert!(worst < 5e-3, "{worst:.1e}");
}

fn worst_relative(actual: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    let each = actual.iter().zip(expected).map(|(a, b)| {
        let scale = b.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale
    });
    each.fold(0.0, f64::max)
}

#[test]
fn values_go_through_tensors_unchanged() {
    let values = Values { rows: 2, cols: 3, data: vec![1.5, -2.0, 0.0, 3.25, f32::MIN_POSITIVE, 1e30] };
    let tensor = values.tensor(&Device::flex(), DType::F32);
    assert_eq!(Values::read(&tensor).unwrap(), values);
    assert_eq!(Values::read(&tensor.autodiff().require_grad()).unwrap(), values);
}
