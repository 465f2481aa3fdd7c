//! Damaged and hostile adapter files: each a typed error that names the file, and never a panic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};

use calora::adapter::TaskAdapter;
use calora::arch::Recipe;
use calora::cpu::{CpuDevice, CpuOptions};
use calora::device::{Activations, Device};
use calora::weights::BaseIds;
use calora::{Error, Result};
use common::Random;
use serde_json::{Value, json};

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

fn recipe() -> Recipe {
    let config = std::fs::read(golden("gqa/config.json")).unwrap();
    calora::arch::recipe(&serde_json::from_slice(&config).unwrap(), Path::new("c")).unwrap()
}

fn task_file(name: &str) -> Vec<u8> {
    let path = format!("tests/golden/gqa/recovery/{name}.safetensors");
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Writes bytes to a file and opens it as an adapter.
fn open(folder: &Path, bytes: &[u8]) -> Result<TaskAdapter> {
    let path: PathBuf = folder.join("task.safetensors");
    std::fs::write(&path, bytes).unwrap();
    let opened = TaskAdapter::open(&path);
    if let Err(error) = &opened {
        assert!(error.to_string().contains("task.safetensors"), "the error names no file: {error}");
    }
    opened
}

/// The file with a text in its header replaced by another of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("the text is in the header");
    let mut out = bytes.to_vec();
    out[at..at + to.len()].copy_from_slice(to.as_bytes());
    out
}

#[test]
fn damaged_task_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = task_file("lora_recovery");
    open(folder.path(), &good).unwrap();
    let int8 = task_file("int8");
    let cases = [
        ("empty", Vec::new(), ""),
        ("no header", vec![1, 2, 3], ""),
        ("truncated header", good[..100].to_vec(), ""),
        ("truncated tensors", good[..good.len() - 1].to_vec(), ""),
        ("header beyond the file", [&u64::MAX.to_le_bytes()[..], &good[8..]].concat(), ""),
        (
            "another version",
            replaced(&good, "\"calora.version\":\"1\"", "\"calora.version\":\"9\""),
            "version 9",
        ),
        ("another format", replaced(&good, "task-adapter", "task-ADAPTER"), "calora.format"),
        (
            "another activation",
            replaced(&good, "\"calora.activation\":\"gelu\"", "\"calora.activation\":\"tanh\""),
            "tanh",
        ),
        (
            "scaling of no module",
            replaced(&good, "model.layers.0.self_attn.q_proj\\\"", "model.layers.7.self_attn.q_proj\\\""),
            "calora.scaling",
        ),
        (
            "a stranger's tensor",
            replaced(&good, "0.self_attn.q_proj.lora_A", "0.self_attn.q_proj.lora_X"),
            "lora_X",
        ),
        (
            "half a pair",
            replaced(&good, "0.self_attn.q_proj.lora_A", "9.self_attn.q_proj.lora_A"),
            "beside it",
        ),
        ("no scale for int8", replaced(&int8, "lora_A.weight_scale", "lora_A.weight_other"), "weight_"),
    ];
    for (what, bytes, word) in cases {
        let error = open(folder.path(), &bytes).err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert!(error.to_string().contains(word), "{what}: {error}");
    }
}

/// Rewrites the header's JSON, data unchanged.
fn edited(bytes: &[u8], edit: impl Fn(&mut Value)) -> Vec<u8> {
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    edit(&mut header);
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[end..]].concat()
}

#[test]
fn metadata_that_says_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (good, int8) = (task_file("lora_recovery"), task_file("int8"));
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let set = |key: &'static str, value: &'static str| {
        edited(&good, move |h| h["__metadata__"][format!("calora.{key}")] = json!(value))
    };
    let without = |key: &str| edited(&good, |h| drop(h["__metadata__"].as_object_mut().unwrap().remove(key)));
    let scaling = |edit: &dyn Fn(&mut Value)| {
        edited(&good, |h| {
            let slot = &mut h["__metadata__"]["calora.scaling"];
            let mut scaling: Value = serde_json::from_str(slot.as_str().unwrap()).unwrap();
            edit(&mut scaling);
            *slot = json!(scaling.to_string());
        })
    };
    let first = "model.layers.0.self_attn.q_proj";
    let cases = [
        ("no version", without("calora.version"), "version (none)"),
        ("version 99", set("version", "99"), "version 99"),
        ("no base", without("calora.base"), "calora.base"),
        ("no scaling", without("calora.scaling"), "calora.scaling"),
        ("broken JSON", set("scaling", "{\"model"), "calora.scaling is not JSON"),
        ("scaling is a list", set("scaling", "[1, 2]"), "calora.scaling is not a JSON object"),
        ("scaling is text", scaling(&|s| s[first]["lora"] = json!("2")), "no number for lora"),
        ("scaling overflows", scaling(&|s| s[first]["lora"] = json!(1e39)), "no number for lora"),
        ("scaling of a module is a number", scaling(&|s| s[first] = json!(2)), "no number for lora"),
        ("scaling of no branch", scaling(&|s| s["lm_head"] = json!({"lora": 1})), "no tensors"),
        ("scaling of another kind", scaling(&|s| s[first]["prefix"] = json!(1)), "no tensors"),
        ("stop is text", set("stop", "\"x\""), "calora.stop"),
        ("stop is broken", set("stop", "[\"x"), "calora.stop"),
        ("sampling is a list", set("sampling", "[]"), "calora.sampling"),
        ("max_tokens is negative", set("max_tokens", "-3"), "calora.max_tokens"),
        ("max_tokens is text", set("max_tokens", "many"), "calora.max_tokens"),
        ("integer type", edited(&int8, |h| h[q]["dtype"] = json!("U8")), "U8"),
        (
            "one dimension",
            edited(&good, |h| {
                let len: u64 =
                    h[q]["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product();
                h[q]["shape"] = json!([len]);
            }),
            "two dimensions",
        ),
        (
            "ranks differ",
            edited(&good, |h| {
                let [r, k] = [0, 1].map(|i| h[q]["shape"][i].as_u64().unwrap());
                h[q]["shape"] = json!([r / 2, k * 2]);
            }),
            "has rank 4, its partner",
        ),
        (
            "empty ranks",
            edited(&good, |h| {
                h[format!("{}B.weight", q.trim_end_matches("A.weight"))]["shape"] = json!([64, 0]);
            }),
            "shape [64, 0]",
        ),
        (
            "scale of another type",
            edited(&int8, |h| {
                let scale = &mut h[format!("{q}_scale")];
                scale["shape"] = json!([scale["shape"][0].as_u64().unwrap() * 2]);
                scale["dtype"] = json!("F16");
            }),
            "expected F32",
        ),
        (
            "scale beside floats",
            edited(&int8, |h| {
                let [r, k] = [0, 1].map(|i| h[q]["shape"][i].as_u64().unwrap());
                h[q]["shape"] = json!([r, k / 2]);
                h[q]["dtype"] = json!("F16");
            }),
            "not I8",
        ),
    ];
    for (what, bytes, word) in cases {
        let error = open(folder.path(), &bytes).err().unwrap_or_else(|| panic!("{what} was accepted"));
        assert!(error.to_string().contains(word), "{what}: {error}");
    }
}

#[test]
fn a_wrong_shape_is_found_when_bound() {
    let folder = tempfile::tempdir().unwrap();
    let good = task_file("recovery");
    let (down, up) = ("recovery_D", "recovery_U");
    let name = |side: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.{side}.weight");
    let wide = edited(&good, |h| {
        // Half the rank, twice the width on both sides: consistent, and of another model.
        for (side, rank, other) in [(down, 0, 1), (up, 1, 0)] {
            let shape = &mut h[name(side)]["shape"];
            shape[rank] = json!(shape[rank].as_u64().unwrap() / 2);
            shape[other] = json!(shape[other].as_u64().unwrap() * 2);
        }
    });
    let adapter = open(folder.path(), &wide).unwrap();
    let error = adapter.bind(&recipe(), &BaseIds::default()).unwrap_err();
    assert!(matches!(error, Error::Tensor { .. }), "{error}");
    assert!(error.to_string().contains(down) && error.to_string().contains("task.safetensors"), "{error}");
}

/// NaN and infinities cost a pass over the data, so that they are found when a device loads the tail, not before.
#[test]
fn values_that_are_not_finite_are_found_at_first_use() {
    let folder = tempfile::tempdir().unwrap();
    for (file, bad) in [("lora_recovery", &[0x00, 0x7e][..]), ("int8", &f32::INFINITY.to_le_bytes()[..])] {
        let mut bytes = task_file(file);
        let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..end]).unwrap();
        let scale = if file == "int8" { "_scale" } else { "" };
        let name = format!("base_model.model.model.layers.1.mlp.up_proj.lora_B.weight{scale}");
        let at = end + header[&name]["data_offsets"][0].as_u64().unwrap() as usize;
        bytes[at..at + bad.len()].copy_from_slice(bad);
        let (tail, _) = open(folder.path(), &bytes).unwrap().bind(&recipe(), &BaseIds::default()).unwrap();
        let config: Value =
            serde_json::from_slice(&std::fs::read(golden("gqa/config.json")).unwrap()).unwrap();
        let model = common::random_model(&config, common::Store::F32, 1);
        let options =
            CpuOptions { threads: Some(1), activations: Activations::F32, max_tokens: 8, simd: None };
        let mut device = CpuDevice::new(&model, options).unwrap();
        let error = device.load_tail(&tail).unwrap_err().to_string();
        assert!(
            error.contains("layers.1.mlp.up_proj.lora_B") && error.contains("task.safetensors"),
            "{error}"
        );
    }
}

#[test]
fn git_lfs_pointers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let pointer =
        format!("version https://git-lfs.example/spec/v1\noid sha256:{}\nsize 12345\n", "0".repeat(64));
    let error = open(folder.path(), pointer.as_bytes()).unwrap_err();
    assert!(matches!(error, Error::LfsPointer { size: 12345, .. }), "{error}");
    let lora = golden("gqa/adapters/lora");
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let other =
            ["adapter_config.json", "adapter_model.safetensors"].into_iter().find(|f| *f != file).unwrap();
        std::fs::copy(lora.join(other), folder.path().join(other)).unwrap();
        std::fs::write(folder.path().join(file), &pointer).unwrap();
        let error = TaskAdapter::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::LfsPointer { .. }), "{error}");
        assert!(error.to_string().contains(file), "{error}");
    }
}

/// Tensors that are no LoRA on a linear, each refused by its name.
#[test]
fn tensors_of_other_kinds_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let lora = golden("gqa/adapters/lora");
    std::fs::copy(lora.join("adapter_config.json"), folder.path().join("adapter_config.json")).unwrap();
    let good = std::fs::read(lora.join("adapter_model.safetensors")).unwrap();
    let q = "base_model.model.model.layers.0.self_attn.q_proj";
    let renamed = |side: &str, to: &str| {
        edited(&good, |h| {
            let entry = h.as_object_mut().unwrap().shift_remove(&format!("{q}.{side}.weight")).unwrap();
            h[to] = entry;
        })
    };
    let write = |bytes: &[u8]| {
        std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
        TaskAdapter::open(folder.path())
    };
    for (to, word) in [
        ("base_model.model.score.weight".to_owned(), "whole trained modules"),
        ("base_model.model.model.embed_tokens.lora_embedding_A".to_owned(), "embeddings"),
        ("base_model.model.model.embed_tokens.weight".to_owned(), "vocabulary"),
        (format!("{q}.lora_magnitude_vector"), "use_dora"),
        (format!("{q}.lora_B.bias"), "bias"),
        (format!("{q}.bias"), "bias"),
        (format!("{q}.lora_A.sql.weight"), "another name"),
        (format!("{q}.weight"), "no LoRA matrix"),
    ] {
        let error = write(&renamed("lora_A", &to)).unwrap_err();
        assert!(matches!(error, Error::UnsupportedAdapter { .. }), "{to}: {error}");
        assert!(error.to_string().contains(&to) && error.to_string().contains(word), "{to}: {error}");
    }
    // Half a pair, in either spelling of the other half.
    let error =
        write(&renamed("lora_A", "base_model.model.model.layers.0.self_attn.v_proj.lora_A.default.weight"));
    assert!(error.unwrap_err().to_string().contains("twice"));
    let error = write(&renamed("lora_A", "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"));
    assert!(error.unwrap_err().to_string().contains("beside it"));
    // The adapter's name in full, no prefix, and a compiled model's: the same adapter.
    for to in [format!("{q}.lora_A.default.weight"), format!("{}.lora_A.weight", &q[17..]), {
        format!("base_model.model._orig_mod.{}.lora_A.weight", &q[17..])
    }] {
        let adapter = write(&renamed("lora_A", &to)).unwrap_or_else(|e| panic!("{to}: {e}"));
        assert_eq!(adapter.modules().count(), 6, "{to}");
    }
}

#[test]
fn keys_that_change_the_meaning_are_refused_and_others_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let good = task_file("lora_recovery");
    // Same length as a key that the file has and that is not needed to open it.
    let with = |key: &str| {
        replaced(
            &good,
            "\"calora.activation\":\"gelu\"",
            &format!("\"{key}\":\"{:1$}\"", "x", 21 - key.len()),
        )
    };
    for key in ["calora.prefix", "calora.base_recovery"] {
        let error = open(folder.path(), &with(key)).unwrap_err();
        assert!(
            matches!(error, Error::UnsupportedAdapter { .. }) && error.to_string().contains(key),
            "{error}"
        );
    }
    for key in ["calora.signature", "somebody.elses"] {
        open(folder.path(), &with(key)).unwrap();
    }
    let error = open(folder.path(), &with("calora.probe")).unwrap_err();
    assert!(error.to_string().contains("calora.probe"), "{error}");
}

#[test]
fn a_peft_folder_without_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let error = TaskAdapter::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    std::fs::write(folder.path().join("adapter_config.json"), "{\"peft_type\":\"LORA\"}").unwrap();
    let error = TaskAdapter::open(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::MissingFile { file, .. } if file == "adapter_model.safetensors"),
        "{error}"
    );
    std::fs::write(folder.path().join("adapter_config.json"), "[1]").unwrap();
    assert!(TaskAdapter::open(folder.path()).unwrap_err().to_string().contains("adapter_config.json"));
    let error = TaskAdapter::open(folder.path().join("nowhere")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

/// Random damage anywhere in small files: an error or a working adapter, never a panic.
#[test]
fn random_damage_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Random(99);
    let recipe = recipe();
    let path = folder.path().join("t.safetensors");
    let mut refused = 0;
    for name in ["lora_recovery", "int8"] {
        let good = task_file(name);
        let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        for _ in 0..400 {
            let mut bytes = good.clone();
            for _ in 0..1 + rng.below(3) {
                bytes[rng.below(header)] = rng.next() as u8;
            }
            std::fs::write(&path, &bytes).unwrap();
            let tail = TaskAdapter::open(&path).and_then(|a| a.bind(&recipe, &BaseIds::default()));
            match tail {
                Err(_) => refused += 1,
                Ok((tail, _)) => {
                    tail.branches.iter().flatten().for_each(|b| drop((b.down.to_f32(), b.up.to_f32())))
                }
            }
        }
    }
    assert!(refused > 400, "only {refused} of 800 damaged files were refused");
}

/// The same for the two files of a PEFT folder.
#[test]
fn random_damage_to_a_peft_folder_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Random(100);
    let (recipe, source) = (recipe(), golden("gqa/adapters/rank_pattern"));
    let files = ["adapter_config.json", "adapter_model.safetensors"];
    let good = files.map(|f| std::fs::read(source.join(f)).unwrap());
    let header = 8 + u64::from_le_bytes(good[1][..8].try_into().unwrap()) as usize;
    let mut refused = 0;
    for round in 0..600 {
        let at = round % 2;
        let mut bytes = good[at].clone();
        let reach = if at == 0 { bytes.len() } else { header };
        for _ in 0..1 + rng.below(3) {
            bytes[rng.below(reach)] = rng.next() as u8;
        }
        std::fs::write(folder.path().join(files[at]), &bytes).unwrap();
        std::fs::write(folder.path().join(files[1 - at]), &good[1 - at]).unwrap();
        match TaskAdapter::open(folder.path()).and_then(|a| a.bind(&recipe, &BaseIds::default())) {
            Err(_) => refused += 1,
            Ok((tail, coverage)) => {
                tail.branches.iter().flatten().for_each(|b| drop((b.down.to_f32(), b.up.to_f32())));
                assert!(!coverage.to_string().is_empty());
            }
        }
    }
    assert!(refused > 300, "only {refused} of 600 damaged folders were refused");
}
