//! PEFT's rules about which module gets a LoRA, of which rank and scaling, against what peft itself answers.
//!
//! `tests/peft/expected.json` is written by `tests/peft/expected.py`; for every configuration in it this makes a file
//! with the tensors that peft would save.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use calora::adapter::TaskAdapter;
use calora::arch::{self, Recipe};
use calora::weights::BaseIds;
use calora::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Module path to (rank, scaling).
type Expected = BTreeMap<String, (usize, f64)>;

fn expected() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft/expected.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn modules(value: &Value) -> Expected {
    serde_json::from_value(value.clone()).unwrap()
}

/// Opens a folder with this configuration and non-zero LoRA tensors of these modules: name, rank, (R, K).
fn open(config: &Value, tensors: &[(String, usize, (usize, usize))]) -> Result<TaskAdapter> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    let ones = vec![0x3c; 2 * 4096];
    let mut views = Vec::new();
    for (module, rank, (rows, cols)) in tensors {
        for (side, shape) in [("lora_A", vec![*rank, *cols]), ("lora_B", vec![*rows, *rank])] {
            let bytes = 2 * shape[0] * shape[1];
            let view = TensorView::new(Dtype::F16, shape, &ones[..bytes]).unwrap();
            views.push((format!("base_model.model.{module}.{side}.weight"), view));
        }
    }
    let path = folder.path().join("adapter_model.safetensors");
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    TaskAdapter::open(folder.path())
}

fn found(adapter: &TaskAdapter) -> Expected {
    let one = |branches: &[calora::adapter::Branch]| (branches[0].rank(), f64::from(branches[0].scaling));
    adapter.modules().map(|(module, branches)| (module.to_owned(), one(&branches))).collect()
}

fn assert_same(what: &str, found: &Expected, expected: &Expected) {
    assert!(found.keys().eq(expected.keys()), "{what}: other modules");
    for (module, (rank, scaling)) in expected {
        let (r, s) = found[module];
        // Scalings are rounded to float32 once.
        let same = r == *rank && (s - scaling).abs() <= 1e-6 * scaling.abs();
        assert!(same, "{what}: {module} has rank {r} x{s}, peft says {rank} x{scaling}");
    }
}

fn llama(expected: &Value) -> Recipe {
    arch::recipe(&expected["model"], Path::new("config.json")).unwrap()
}

#[test]
fn modules_ranks_and_scalings_are_those_of_peft() {
    let expected = expected();
    let recipe = llama(&expected);
    let shape = |module: &str| recipe.linear_shape(recipe.linear(module).unwrap());
    let cases = expected["llama"].as_array().unwrap();
    assert!(cases.len() >= 45, "only {} cases", cases.len());
    for case in cases {
        let (name, config) = (case["name"].as_str().unwrap(), &case["config"]);
        let expected = modules(&case["modules"]);
        let tensors: Vec<_> = expected.iter().map(|(m, (rank, _))| (m.clone(), *rank, shape(m))).collect();
        let adapter = open(config, &tensors).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_same(name, &found(&adapter), &expected);

        let look_around = name.contains("look-");
        let (_, coverage) = adapter.bind(&recipe, &BaseIds::default()).unwrap();
        assert_eq!(coverage.touched.len(), expected.len(), "{name}");
        assert!(coverage.missing.is_empty(), "{name}: {:?}", coverage.missing);
        assert_eq!(coverage.unchecked.len(), usize::from(look_around), "{name}");
        let idle = expected.values().filter(|(_, scaling)| *scaling == 0.0).count();
        assert_eq!(coverage.idle.len(), idle, "{name}");
        if look_around {
            assert!(coverage.to_string().contains("target_modules"), "{coverage}");
            continue;
        }

        // One module less than peft would save is reported, one more is refused.
        if tensors.len() > 1 {
            let adapter = open(config, &tensors[1..]).unwrap();
            let (_, coverage) = adapter.bind(&recipe, &BaseIds::default()).unwrap();
            assert_eq!(coverage.missing, [tensors[0].0.as_str()], "{name}");
            assert!(coverage.to_string().contains("1 targeted linears have no tensors"), "{coverage}");
        }
        let rank = config["r"].as_u64().unwrap_or(8) as usize;
        // One of each kind and many layers: 11 and the 7 linears of a layer have no common divisor.
        for linear in recipe.linears.iter().filter(|l| !expected.contains_key(&l.path)).step_by(11) {
            let more = (linear.path.clone(), rank, shape(&linear.path));
            let error = open(config, &[tensors.clone(), vec![more]].concat()).unwrap_err();
            assert!(matches!(error, Error::Tensor { .. }), "{name}: {}: {error}", linear.path);
            assert!(error.to_string().contains("target_modules"), "{error}");
        }
    }
}

/// Without `target_modules` peft has a table for each architecture; the tensors say the same.
#[test]
fn without_target_modules_the_tensors_decide() {
    let recipe = llama(&expected());
    let (q, v) = ("model.layers.0.self_attn.q_proj".to_owned(), "model.layers.0.self_attn.v_proj".to_owned());
    let tensors = [(q, 8, (8, 8)), (v, 8, (4, 8))];
    for config in [json!({"peft_type": "LORA"}), json!({"peft_type": "LORA", "target_modules": null})] {
        let adapter = open(&config, &tensors).unwrap();
        assert_eq!(found(&adapter).values().copied().collect::<Vec<_>>(), [(8, 1.0); 2]);
        assert!(adapter.bind(&recipe, &BaseIds::default()).unwrap().1.missing.is_empty());
    }
}

#[test]
fn real_configurations_are_read_as_peft_reads_them() {
    let Some(data) = common::test_data("ten real PEFT configurations") else { return };
    let expected = expected();
    let candidates: Vec<String> = serde_json::from_value(expected["candidates"].clone()).unwrap();
    let real = expected["real"].as_object().unwrap();
    assert_eq!(real.len(), 10);
    for (name, answer) in real {
        let path = data.join(format!("adapters/configs/{name}.json"));
        let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let expected = modules(answer);
        let tensors: Vec<_> = expected.iter().map(|(m, (rank, _))| (m.clone(), *rank, (2, 3))).collect();
        let opened = open(&config, &tensors);
        if name == "distilbert-modules-to-save" {
            let error = opened.unwrap_err().to_string();
            assert!(error.contains("modules_to_save") && error.contains("pre_classifier"), "{error}");
            continue;
        }
        assert_same(name, &found(&opened.unwrap()), &expected);
        for module in candidates.iter().filter(|m| !expected.contains_key(*m)) {
            let more = vec![(module.clone(), config["r"].as_u64().unwrap() as usize, (2, 3))];
            assert!(open(&config, &[tensors.clone(), more].concat()).is_err(), "{name}: {module}");
        }
    }
}

/// The four real files whose list of tensors is known, with their configurations.
#[test]
fn real_lists_of_tensors() {
    let Some(data) = common::test_data("real PEFT lists of tensors") else { return };
    for (name, pairs) in [
        ("gemma-3-270m-qkvo-r4", 72),
        ("gemma-3-270m-qv-r4", 36),
        ("open-calm-1b-r1", 24),
        ("gpt2-seqcls-r8", 0),
    ] {
        let read = |folder: &str| -> Value {
            let path = data.join(format!("adapters/{folder}/{name}.json"));
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("adapter_config.json"), read("configs").to_string()).unwrap();
        let list = read("tensor-lists");
        let zeros = vec![0; 1 << 20];
        let views = list["tensors"].as_object().unwrap().iter().map(|(name, entry)| {
            let dtype = if entry[0] == "F16" { Dtype::F16 } else { Dtype::F32 };
            let shape: Vec<usize> =
                entry.as_array().unwrap()[1..].iter().map(|d| d.as_u64().unwrap() as usize).collect();
            let bytes = shape.iter().product::<usize>() * if dtype == Dtype::F16 { 2 } else { 4 };
            (name.clone(), TensorView::new(dtype, shape, &zeros[..bytes]).unwrap())
        });
        let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap();
        std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
        let opened = TaskAdapter::open(folder.path());
        if pairs == 0 {
            let error = opened.unwrap_err();
            assert!(matches!(error, Error::UnsupportedAdapter { .. }), "{error}");
            assert!(error.to_string().contains("score.weight"), "{error}");
        } else {
            assert_eq!(opened.unwrap().modules().count(), pairs, "{name}");
        }
    }
}
