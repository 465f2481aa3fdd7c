//! Damaged and hostile adapter files: each a typed error that names the file, and never a panic.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};

use calora::adapter::TaskAdapter;
use calora::weights::BaseIds;
use calora::{Error, Result};
use common::Random;

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
    for key in ["calora.probe", "calora.signature", "somebody.elses"] {
        open(folder.path(), &with(key)).unwrap();
    }
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
    let config =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gqa/config.json")).unwrap();
    let recipe = calora::arch::recipe(&serde_json::from_slice(&config).unwrap(), Path::new("c")).unwrap();
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
