//! The arrows of ARCHITECTURE.md, checked on the source: who may name whom.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}

/// The file's code without comments and without its unit tests, which may reach further.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = match text.contains("#![cfg(test)]") {
        true => "",
        false => text.split("#[cfg(test)]").next().unwrap_or_default(),
    };
    text.lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// No file of `folder` may contain any of `words`.
fn never(folder: &str, words: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime").join(folder);
    let files = if root.is_dir() { sources(&root) } else { vec![root] };
    assert!(!files.is_empty(), "{folder} has no sources");
    for file in files {
        let code = code(&file);
        for word in words {
            assert!(!code.contains(word), "{} names {word}, which its floor must not know", file.display());
        }
    }
}

#[test]
fn only_the_gpu_folder_names_wgpu() {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "gpu" {
            never(&name, &["wgpu::", "use wgpu"]);
        }
    }
}

#[test]
fn the_engine_knows_no_foreign_language() {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("runtime")).unwrap() {
        never(
            &entry.unwrap().file_name().into_string().unwrap(),
            &["uniffi", "android_logger", "calora_ffi"],
        );
    }
}

#[test]
fn floors_know_only_the_floors_below() {
    let above_data =
        ["crate::cpu", "crate::gpu", "crate::kernels", "crate::session", "crate::engine", "crate::text"];
    never("quant", &above_data);
    never("quant", &["crate::weights", "crate::adapter", "crate::arch", "crate::device"]);
    never("weights", &above_data);
    never("weights", &["crate::adapter"]);
    never("arch", &above_data);
    never("arch", &["crate::weights", "crate::adapter", "crate::device"]);
    never("adapter", &above_data);
    never("kernels", &["crate::cpu", "crate::gpu", "crate::session", "crate::engine", "crate::text"]);
    never("cpu", &["crate::gpu", "crate::kernels", "crate::session", "crate::engine", "crate::text"]);
    never("gpu", &["crate::cpu", "crate::session", "crate::engine", "crate::text"]);
    never("text", &["crate::cpu", "crate::gpu", "crate::kernels", "crate::session", "crate::engine"]);
    never("device.rs", &above_data);
    for below in ["weights", "adapter", "session", "engine", "engine.rs"] {
        never(below, &["crate::library", "crate::router"]);
    }
    never("router", &["crate::engine", "crate::library", "crate::device", "crate::cpu", "crate::gpu"]);
}

#[test]
fn the_library_never_prints_and_never_asks_the_environment() {
    never(
        "",
        &["println!", "eprintln!", "dbg!", "std::env::var", "process::exit", "todo!", "unimplemented!"],
    );
}
