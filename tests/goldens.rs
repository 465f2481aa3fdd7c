//! Parity with Hugging Face transformers, peft and an independent PyTorch recovery branch, on small random models.
//!
//! `tests/golden/README.md` says what each case is and how it was made. Logits are float64 results rounded to float32;
//! the CPU in float32 must be within NMSE 1e-9 of them (measured: about 1e-12), the GPU within 1e-8 (its exp and its
//! order of additions differ).
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use calora::adapter::{Tail, TaskAdapter};
use calora::arch;
use calora::cpu::{CpuDevice, CpuOptions};
use calora::device::{Activations, Answer, Device, Forward, Model, Want};
use calora::gpu::{GpuChoice, GpuDevice, GpuOptions};
use calora::weights::{ModelFolder, SafetensorsFile};
use common::nmse;
use serde_json::{Value, json};

/// All folders with a golden.
const CASES: &[&str] = &["plain", "gqa", "llama3", "old_keys", "biases", "tied", "head_dim", "wide"];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case)
}

/// (ids, logits) of a golden file.
fn golden(path: &Path) -> (Vec<u32>, Vec<f32>) {
    let file = SafetensorsFile::open(path).unwrap();
    let ids = file.tensor("ids").unwrap().elements::<i64>().iter().map(|id| *id as u32).collect();
    (ids, file.tensor("logits").unwrap().to_f32().unwrap())
}

/// A case's model, its configuration changed by `edit`.
fn model(case: &str, edit: impl Fn(&mut Value)) -> Model {
    let files = ModelFolder::open(folder(case)).unwrap();
    let mut config = files.config().clone();
    edit(&mut config);
    let recipe = arch::recipe(&config, &folder(case).join("config.json")).unwrap();
    let weights = files.weights(&recipe).unwrap();
    Model { recipe: Arc::new(recipe), weights: Arc::new(weights) }
}

fn tail(model: &Model, adapter: &Path) -> Tail {
    TaskAdapter::open(adapter).unwrap().bind(&model.recipe, &Default::default()).unwrap().0
}

fn cpu(model: &Model) -> Box<dyn Device> {
    let options = CpuOptions { threads: Some(2), activations: Activations::F32, max_tokens: 64, simd: None };
    Box::new(CpuDevice::new(model, options).unwrap())
}

fn gpu(model: &Model) -> Box<dyn Device> {
    let options = GpuOptions {
        activations: Activations::F32,
        max_tokens: 64,
        choice: GpuChoice::Any,
        ..GpuOptions::default()
    };
    Box::new(GpuDevice::new(model, options).unwrap())
}

fn logits(device: &mut dyn Device, ids: &[u32], tail: Option<&Tail>) -> Vec<f32> {
    let cache = device.create_cache(ids.len()).unwrap();
    let resident = tail.map(|t| device.load_tail(t).unwrap());
    let pass =
        Forward { tokens: ids, position: 0, cache, tail: resident, scales: &[], want: Want::AllLogits };
    let Answer::Logits(logits) = device.forward(&pass).unwrap() else { panic!("no logits") };
    device.drop_cache(cache);
    if let Some(resident) = resident {
        device.drop_tail(resident);
    }
    logits
}

/// Adapters (or task files) of a case with the golden of each.
fn adapters(case: &str) -> Vec<(PathBuf, PathBuf)> {
    let refused = ["dora", "modules_to_save", "lora_bias", "bias_all", "bias_lora_only"];
    let mut found = Vec::new();
    for (dir, file) in [("adapters", ""), ("recovery", ".safetensors")] {
        let Ok(entries) = std::fs::read_dir(folder(case).join(dir)) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if refused.contains(&name) || name.starts_with("golden") {
                continue;
            }
            let golden = if file.is_empty() { folder(case) } else { folder(case).join(dir) };
            found.push((path.clone(), golden.join(format!("golden_{name}.safetensors"))));
        }
    }
    found.sort();
    found
}

fn parity(device: fn(&Model) -> Box<dyn Device>, limit: f64) {
    let mut worst: f64 = 0.0;
    let mut count = 0;
    let mut check = |what: &Path, actual: &[f32], expected: &[f32]| {
        let error = nmse(actual, expected);
        assert!(error <= limit, "{}: NMSE {error:.1e}, allowed {limit:.0e}", what.display());
        worst = worst.max(error);
        count += 1;
    };
    for case in CASES {
        let model = model(case, |_| ());
        let mut device = device(&model);
        let (ids, expected) = golden(&folder(case).join("golden.safetensors"));
        let plain = logits(&mut *device, &ids, None);
        check(&folder(case), &plain, &expected);
        for (adapter, golden_file) in adapters(case) {
            let (ids, expected) = golden(&golden_file);
            let tail = tail(&model, &adapter);
            let adapted = logits(&mut *device, &ids, Some(&tail));
            assert!(nmse(&adapted, &plain) >= 1e-3, "{} does nothing", adapter.display());
            check(&adapter, &adapted, &expected);
        }
        assert_eq!(logits(&mut *device, &ids, None), plain, "{case}: detaching does not restore the logits");
    }
    assert!(count >= 8 + 19, "only {count} goldens found");
    println!("{count} goldens, worst NMSE {worst:.1e}");
}

#[test]
fn cpu_agrees_with_transformers_and_peft() {
    parity(cpu, 1e-9);
}

#[test]
fn gpu_agrees_with_transformers_and_peft() {
    parity(gpu, 1e-8);
}

/// A field that could be ignored without a golden noticing would be a field without a test.
#[test]
fn every_configuration_field_matters() {
    let theta = |v: f64| move |c: &mut Value| c["rope_parameters"]["rope_theta"] = json!(v);
    type Edit = Box<dyn Fn(&mut Value)>;
    let cases: Vec<(&str, &str, Edit)> = vec![
        ("gqa", "rope_theta", Box::new(theta(10000.0))),
        ("plain", "rms_norm_eps", Box::new(|c| c["rms_norm_eps"] = json!(1e-5))),
        ("llama3", "rope scaling", Box::new(|c| c["rope_parameters"]["rope_type"] = json!("default"))),
        ("llama3", "factor", Box::new(|c| c["rope_parameters"]["factor"] = json!(2.0))),
        ("llama3", "low_freq_factor", Box::new(|c| c["rope_parameters"]["low_freq_factor"] = json!(0.25))),
        ("llama3", "high_freq_factor", Box::new(|c| c["rope_parameters"]["high_freq_factor"] = json!(32.0))),
        (
            "llama3",
            "original_max_position_embeddings",
            Box::new(|c| c["rope_parameters"]["original_max_position_embeddings"] = json!(8)),
        ),
        ("old_keys", "rope_scaling", Box::new(|c| c["rope_scaling"] = Value::Null)),
        ("old_keys", "rope_theta", Box::new(|c| c["rope_theta"] = json!(20.0))),
        ("biases", "attention_bias", Box::new(|c| c["attention_bias"] = json!(false))),
        ("biases", "mlp_bias", Box::new(|c| c["mlp_bias"] = json!(false))),
    ];
    for (case, field, edit) in cases {
        let (ids, expected) = golden(&folder(case).join("golden.safetensors"));
        let moved = nmse(&logits(&mut *cpu(&model(case, edit)), &ids, None), &expected);
        assert!(moved >= 1e-4, "{case}: dropping {field} moves the logits by NMSE {moved:.1e} only");
    }
}

/// Fields that set a shape cannot be dropped silently: the tensors no longer fit.
#[test]
fn shape_fields_must_match_the_tensors() {
    for (case, field, value) in [
        ("head_dim", "head_dim", Value::Null),
        ("gqa", "num_key_value_heads", Value::Null),
        ("gqa", "intermediate_size", json!(96)),
        ("gqa", "vocab_size", json!(64)),
        ("tied", "tie_word_embeddings", json!(false)),
    ] {
        let files = ModelFolder::open(folder(case)).unwrap();
        let mut config = files.config().clone();
        config[field] = value;
        let recipe = arch::recipe(&config, Path::new("config.json"));
        let error = recipe.and_then(|recipe| files.weights(&recipe)).err();
        assert!(error.is_some(), "{case}: without {field} the model still loads");
    }
}

/// The scalings and branches of an adapter matter one by one.
#[test]
fn every_branch_and_scaling_matters() {
    let model = model("gqa", |_| ());
    let mut device = cpu(&model);
    for (adapter, golden_file) in adapters("gqa") {
        let (ids, expected) = golden(&golden_file);
        let full = tail(&model, &adapter);
        for linear in (0..full.branches.len()).filter(|l| !full.branches[*l].is_empty()) {
            for branch in 0..full.branches[linear].len() {
                let path = &model.recipe.linears[linear].path;
                let mut without = full.clone();
                without.branches[linear].remove(branch);
                let moved = nmse(&logits(&mut *device, &ids, Some(&without)), &expected);
                assert!(moved >= 1e-4, "{}: without {path} {branch}: NMSE {moved:.1e}", adapter.display());
            }
        }
        let mut scaled = full.clone();
        scaled.branches.iter_mut().flatten().for_each(|b| b.scaling *= 0.8);
        let moved = nmse(&logits(&mut *device, &ids, Some(&scaled)), &expected);
        assert!(moved >= 1e-4, "{}: scaling 0.8 moves the logits by {moved:.1e}", adapter.display());
    }
}

/// An option of PEFT that could be ignored without a golden noticing would be an option without a test. `rank_pattern`,
/// targets and layers cannot be dropped: the tensors no longer agree (`tests/adapters_load.rs`).
#[test]
fn every_scaling_option_of_peft_matters() {
    let model = model("gqa", |_| ());
    for (name, option, value) in [
        ("rslora", "use_rslora", json!(false)),
        ("rank_pattern", "alpha_pattern", json!({})),
        ("lora", "lora_alpha", json!(16)),
    ] {
        let source = folder("gqa").join("adapters").join(name);
        let edited = tempfile::tempdir().unwrap();
        std::fs::copy(
            source.join("adapter_model.safetensors"),
            edited.path().join("adapter_model.safetensors"),
        )
        .unwrap();
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
        config[option] = value;
        std::fs::write(edited.path().join("adapter_config.json"), config.to_string()).unwrap();
        let (ids, expected) = golden(&folder("gqa").join(format!("golden_{name}.safetensors")));
        let actual = logits(&mut *cpu(&model), &ids, Some(&tail(&model, edited.path())));
        let moved = nmse(&actual, &expected);
        assert!(moved >= 1e-4, "{name}: dropping {option} moves the logits by NMSE {moved:.1e} only");
    }
}
