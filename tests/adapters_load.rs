//! Loading adapters: PEFT's semantics, task files, and every refusal.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calora::adapter::{
    AdapterInfo, BaseCheck, Branch, BranchKind, BranchStorage, LowRank, TaskAdapter, write_task_file,
};
use calora::arch::{self, Recipe};
use calora::weights::{BaseIds, DType, Tensor};
use calora::{Error, Result};
use common::{Random, float_tensor, nmse};
use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn recipe(case: &str) -> Recipe {
    let path = golden(case).join("config.json");
    arch::recipe(&serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap(), &path).unwrap()
}

/// Opens a PEFT adapter of the `gqa` case after changing its configuration.
fn edited(name: &str, edit: impl Fn(&mut Value)) -> Result<TaskAdapter> {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("gqa/adapters").join(name);
    std::fs::copy(source.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors"))
        .unwrap();
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
    TaskAdapter::open(folder.path())
}

/// (module, rank, scaling) of every branch.
fn scalings(adapter: &TaskAdapter) -> BTreeMap<String, (usize, f32)> {
    adapter.modules().map(|(m, b)| (m.to_owned(), (b[0].rank(), b[0].scaling))).collect()
}

#[test]
fn rank_and_alpha_patterns_follow_peft() {
    let all = scalings(&TaskAdapter::open(golden("gqa/adapters/rank_pattern")).unwrap());
    // r = 4, alpha = 8; the patterns are in the folder's configuration.
    for (module, rank, scaling) in [
        ("model.layers.0.self_attn.q_proj", 12, 8.0 / 12.0),
        ("model.layers.1.self_attn.q_proj", 4, 2.0),
        ("model.layers.1.self_attn.k_proj", 4, 10.0),
        ("model.layers.0.self_attn.k_proj", 4, 2.0),
        ("model.layers.2.self_attn.v_proj", 2, 2.5),
        ("model.layers.2.self_attn.o_proj", 3, 8.0 / 3.0),
        ("model.layers.0.mlp.gate_proj", 4, 2.0),
        ("model.layers.1.mlp.up_proj", 6, 8.0 / 6.0),
        ("model.layers.0.mlp.down_proj", 4, 5.0),
    ] {
        assert_eq!(all[module], (rank, scaling as f32), "{module}");
    }
    assert_eq!(all.len(), 21);
}

#[test]
fn rslora_divides_by_the_root_of_the_rank() {
    let plain = scalings(&edited("rslora", |c| c["use_rslora"] = json!(false)).unwrap());
    let stabilised = scalings(&edited("rslora", |_| ()).unwrap());
    for (module, (rank, scaling)) in stabilised {
        let (_, plain) = plain[&module];
        assert!((scaling / plain - (rank as f32).sqrt()).abs() < 1e-5, "{module}");
    }
}

#[test]
fn old_and_unknown_keys() {
    let before = scalings(&edited("lora", |_| ()).unwrap());
    let old = |c: &mut Value| {
        let keep = ["peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path"];
        c.as_object_mut().unwrap().retain(|k, _| keep.contains(&k.as_str()));
        c["a_key_of_2031"] = json!({"x": [1]});
    };
    assert_eq!(scalings(&edited("lora", old).unwrap()), before);
}

#[test]
fn what_would_change_the_meaning_is_refused_by_name() {
    let cases: Vec<(&str, Value)> = vec![
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("peft_type", json!("IA3")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("corda")),
        ("init_lora_weights", json!("loftq")),
        ("init_lora_weights", json!("lora_ga")),
        ("init_lora_weights", json!("an_initialisation_of_2031")),
        ("bias", json!(true)),
        ("use_qalora", json!(true)),
        ("use_bdlora", json!({"nblocks": 2})),
        ("alora_invocation_tokens", json!([5])),
        ("trainable_token_indices", json!([1, 2])),
        ("layer_replication", json!([[0, 1]])),
        ("target_parameters", json!(["experts.w"])),
        ("enable_lora", json!([true, false, true])),
    ];
    for (key, value) in cases {
        let error = edited("lora", |c| c[key] = value.clone()).unwrap_err();
        assert!(matches!(error, Error::UnsupportedAdapter { .. }), "{key}: {error}");
        assert!(error.to_string().contains(key), "{key}: {error}");
    }
    for (folder, word) in [
        ("gqa/adapters/dora", "use_dora"),
        ("gqa/adapters/modules_to_save", "modules_to_save"),
        ("gqa/adapters/lora_bias", "lora_bias"),
        ("biases/adapters/bias_all", "bias"),
        ("biases/adapters/bias_lora_only", "bias"),
    ] {
        let error = TaskAdapter::open(golden(folder)).unwrap_err().to_string();
        assert!(error.contains(word), "{folder}: {error}");
    }
}

#[test]
fn configuration_and_tensors_must_agree() {
    for (key, value, word) in [
        ("r", json!(5), "rank"),
        ("target_modules", json!(["gate_proj"]), "target_modules"),
        ("target_modules", json!(".*\\.mlp\\..*"), "target_modules"),
        ("target_modules", json!(7), "target_modules"),
        ("target_modules", json!(["q_proj", 7]), "target_modules"),
        ("rank_pattern", json!({"(?<=x)y": 2}), "look-around"),
        ("rank_pattern", json!({"q_proj": 0}), "rank_pattern"),
        ("rank_pattern", json!([4]), "rank_pattern"),
        ("alpha_pattern", json!({"q_proj": "8"}), "alpha_pattern"),
        ("r", json!(4.5), "whole number"),
        ("r", json!(-4), "whole number"),
        ("lora_alpha", json!("8"), "lora_alpha"),
        ("lora_alpha", json!(1e300), "out of range"),
        ("use_rslora", json!("yes"), "use_rslora"),
        ("layers_to_transform", json!(["0"]), "layers_to_transform"),
        ("exclude_modules", json!(["q_proj"]), "target_modules"),
        ("layers_to_transform", json!([0]), "target_modules"),
    ] {
        let error = edited("lora", |c| c[key] = value.clone()).unwrap_err().to_string();
        assert!(error.contains(word), "{key} = {value}: {error}");
    }
}

#[test]
fn real_adapter_files() {
    let Some(data) = common::test_data("real PEFT adapters and configurations") else { return };
    let adapter = TaskAdapter::open(data.join("adapters/open-calm-1b-r1")).unwrap();
    assert_eq!(adapter.modules().count(), 24);
    let error = adapter.bind(&recipe("gqa"), &BaseIds::default()).unwrap_err();
    assert!(matches!(error, Error::AdapterTouchesNothing { .. }), "{error}");
    let error = TaskAdapter::open(data.join("adapters/lfs-pointer")).unwrap_err();
    assert!(matches!(error, Error::LfsPointer { .. }), "{error}");
}

/// A LoRA on two linears and a recovery on one of them, for `gqa`.
fn modules(rng: &mut Random) -> BTreeMap<String, Vec<Branch>> {
    let recipe = recipe("gqa");
    let mut branch = |module: &str, kind, rank| {
        let shape = recipe.linear_shape(recipe.linear(module).unwrap());
        common::random_branch(rng, kind, shape, rank, DType::F32, 0.5)
    };
    let (q, down) = ("model.layers.0.self_attn.q_proj", "model.layers.2.mlp.down_proj");
    BTreeMap::from([
        (q.to_owned(), vec![branch(q, BranchKind::Lora, 3), branch(q, BranchKind::Recovery, 5)]),
        (down.to_owned(), vec![branch(down, BranchKind::Recovery, 2)]),
    ])
}

#[test]
fn a_task_file_comes_back_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    let info = AdapterInfo {
        name: "spam".into(),
        description: Some("is it spam?".into()),
        path: path.clone(),
        base: Some("blake3:abc".into()),
        system_prompt: Some("You judge.".into()),
        chat_template: Some("{{ messages }}".into()),
        stop: vec!["\n".into(), "</s>".into()],
        sampling: Some(json!({"temperature": 0.5})),
        max_tokens: Some(7),
        ..AdapterInfo::default()
    };
    let written = modules(&mut Random(1));
    // f16 keeps 11 bits, int8 rows about 7: squared errors of about 4e-8 and 2e-5.
    for (storage, limit) in [(BranchStorage::F16, 1e-6), (BranchStorage::Int8, 1e-4)] {
        let [file, again] = [(), ()].map(|()| {
            write_task_file(&path, &info, Some("blake3:abc"), &written, storage).unwrap();
            std::fs::read(&path).unwrap()
        });
        assert_eq!(file, again, "equal tasks are equal files");
        let adapter = TaskAdapter::open(&path).unwrap();
        assert_eq!(adapter.info(), &info);
        assert_eq!(adapter.modules().count(), written.len());
        for (module, branches) in adapter.modules() {
            for (read, source) in branches.iter().zip(&written[module]) {
                assert_eq!(
                    (read.kind, read.scaling, read.rank()),
                    (source.kind, source.scaling, source.rank())
                );
                for (a, b) in [(&read.down, &source.down), (&read.up, &source.up)] {
                    let error = nmse(&a.to_f32().unwrap(), &b.to_f32().unwrap());
                    assert!(error <= limit, "{module}: {error:.1e}");
                }
            }
        }
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
}

#[test]
fn ids_bind_adapters_to_bases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    let recipe = recipe("gqa");
    let info = AdapterInfo { name: "t".into(), ..AdapterInfo::default() };
    let ids = |source: &str, compressed: &str| BaseIds {
        source: (!source.is_empty()).then(|| source.into()),
        compressed: (!compressed.is_empty()).then(|| compressed.into()),
    };
    let bind = |base: Option<&str>, recovery: bool, ids: &BaseIds| {
        let mut modules = modules(&mut Random(2));
        modules.values_mut().for_each(|b| b.retain(|b| recovery || b.kind == BranchKind::Lora));
        modules.retain(|_, b| !b.is_empty());
        write_task_file(&path, &info, base, &modules, BranchStorage::F16).unwrap();
        TaskAdapter::open(&path).unwrap().bind(&recipe, ids).map(|(_, coverage)| coverage.base)
    };
    // LoRA alone runs on its source and on every compression of it.
    assert_eq!(bind(Some("S"), false, &ids("S", "")).unwrap(), BaseCheck::Matched);
    assert_eq!(bind(Some("S"), false, &ids("S", "C")).unwrap(), BaseCheck::Matched);
    assert!(matches!(bind(Some("S"), false, &ids("X", "C")), Err(Error::AdapterMismatch { .. })));
    assert!(matches!(bind(Some("S"), false, &ids("", "C")), Err(Error::AdapterMismatch { .. })));
    // Recovery repairs one compression.
    assert_eq!(bind(Some("C"), true, &ids("S", "C")).unwrap(), BaseCheck::Matched);
    assert!(matches!(bind(Some("S"), true, &ids("S", "C")), Err(Error::AdapterMismatch { .. })));
    assert!(matches!(bind(Some("C"), true, &ids("S", "D")), Err(Error::AdapterMismatch { .. })));
    // Unbound files say so.
    assert_eq!(bind(None, true, &ids("S", "C")).unwrap(), BaseCheck::Unbound);
}

#[test]
fn shapes_and_modules_must_fit_the_model() {
    let adapter = TaskAdapter::open(golden("gqa/adapters/all")).unwrap();
    for case in ["wide", "head_dim"] {
        let error = adapter.bind(&recipe(case), &BaseIds::default()).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. } | Error::UnsupportedAdapter { .. }), "{case}: {error}");
    }
    // A model with fewer layers: part of an adapter is another adapter.
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(golden("gqa/config.json")).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(2);
    let two = arch::recipe(&config, Path::new("config.json")).unwrap();
    let error = adapter.bind(&two, &BaseIds::default()).unwrap_err().to_string();
    assert!(error.contains("model.layers.2."), "{error}");
}

#[test]
fn coverage_reads_well() {
    let adapter = TaskAdapter::open(golden("gqa/adapters/lora")).unwrap();
    let (tail, coverage) = adapter.bind(&recipe("gqa"), &BaseIds::default()).unwrap();
    assert_eq!(coverage.touched.len(), 6);
    assert_eq!(coverage.untouched.len(), 22 - 6);
    assert_eq!(coverage.bytes, tail.byte_len());
    let text = coverage.to_string();
    assert!(text.contains("6 of 22 linears") && text.contains("carries no id"), "{text}");
    let line = |name: &str| text.lines().find(|l| l.trim_start().starts_with(name)).unwrap();
    assert!(line("q_proj").contains("3 of 3") && line("q_proj").contains("r4 x2"), "{text}");
    assert!(line("lm_head").contains("0 of 1"), "{text}");
    assert!(!text.contains("warning"), "{text}");
    // Both kinds, with ranks that differ from layer to layer.
    let adapter = TaskAdapter::open(golden("gqa/recovery/ranks.safetensors")).unwrap();
    let text = adapter.bind(&recipe("gqa"), &BaseIds::default()).unwrap().1.to_string();
    assert!(text.contains("r2..4 x") && text.contains("3 of 3"), "{text}");
}

/// An adapter as PEFT initialises it: legal, and reported.
#[test]
fn an_untrained_adapter_says_that_it_does_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    let (recipe, mut modules) = (recipe("gqa"), modules(&mut Random(3)));
    let check = |modules: &BTreeMap<String, Vec<Branch>>, idle: usize, word: &str| {
        for storage in [BranchStorage::F16, BranchStorage::Int8] {
            write_task_file(&path, &AdapterInfo::default(), None, modules, storage).unwrap();
            let (_, coverage) = TaskAdapter::open(&path).unwrap().bind(&recipe, &BaseIds::default()).unwrap();
            assert_eq!((coverage.idle.len(), coverage.does_nothing()), (idle, idle == 2), "{coverage}");
            assert!(coverage.to_string().contains(word), "{coverage}");
        }
    };
    check(&modules, 0, "2 of 22");
    for (at, list) in modules.clone().into_values().enumerate() {
        let zeroed = list.into_iter().map(|mut b| {
            let (rows, rank) = b.up.shape();
            b.up = LowRank::Float(float_tensor("B", DType::F32, &[rows, rank], &vec![-0.0; rows * rank]));
            b
        });
        *modules.values_mut().nth(at).unwrap() = zeroed.collect();
        check(&modules, at + 1, if at == 0 { "1 linears are zero" } else { "does nothing" });
    }
}

#[test]
fn a_task_file_replaces_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::copy(golden("gqa/model.safetensors"), &path).unwrap();
    let before = std::fs::read(&path).unwrap();
    let write = || {
        write_task_file(&path, &AdapterInfo::default(), None, &modules(&mut Random(4)), BranchStorage::F16)
    };
    let error = write().unwrap_err();
    assert!(error.to_string().contains("no task file"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), before);
    std::fs::remove_file(&path).unwrap();
    write().unwrap();
    write().unwrap();
}

/// A part of the model's names are fused ones: named, and not attached in part.
#[test]
fn fused_projections_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    let mut modules = modules(&mut Random(5));
    let bind = |modules: &BTreeMap<String, Vec<Branch>>| {
        write_task_file(&path, &AdapterInfo::default(), None, modules, BranchStorage::F16).unwrap();
        TaskAdapter::open(&path).unwrap().bind(&recipe("gqa"), &BaseIds::default()).unwrap_err()
    };
    let branches = modules["model.layers.0.self_attn.q_proj"].clone();
    modules.insert("model.layers.0.self_attn.qkv_proj".into(), branches.clone());
    let error = bind(&modules);
    assert!(matches!(error, Error::UnsupportedAdapter { .. }), "{error}");
    assert!(error.to_string().contains("fused projection qkv_proj"), "{error}");
    let error = bind(&BTreeMap::from([("model.layers.0.mlp.gate_up_proj".to_owned(), branches)]));
    assert!(matches!(error, Error::AdapterTouchesNothing { .. }), "{error}");
    assert!(error.to_string().contains("gate_up_proj: such a linear joins several"), "{error}");
    let error = bind(&BTreeMap::new());
    assert!(matches!(error, Error::AdapterTouchesNothing { .. }), "{error}");
}

#[test]
fn values_that_are_not_finite_are_found() {
    for bad in [f32::NAN, f32::INFINITY] {
        let tensor = Tensor::from_f32("x.lora_A.weight", &[1, 2], &[1.0, bad]).unwrap();
        let error = LowRank::Float(tensor).to_f32().unwrap_err().to_string();
        assert!(error.contains("x.lora_A.weight") && error.contains("element 1"), "{error}");
    }
    let huge = LowRank::Float(float_tensor("h", DType::F32, &[1, 1], &[1e9]));
    let branch = Branch { kind: BranchKind::Lora, scaling: 1.0, down: huge.clone(), up: huge };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    let modules = BTreeMap::from([("m".to_owned(), vec![branch])]);
    let error =
        write_task_file(&path, &AdapterInfo::default(), None, &modules, BranchStorage::F16).unwrap_err();
    assert!(error.to_string().contains("range of f16"), "{error}");
}
