//! What the plan says of a process's memory, compared with what the system says. It counts what whole processes
//! hold, so each part runs in one of its own.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/folder.rs"]
mod folder;

use std::fs;
use std::path::Path;
use std::process::Command;

use calora::engine::{ActivationChoice, DeviceChoice, Engine, EngineOptions, WeightAccess};
use calora::memory::{MemoryOptions, MemoryPlan, TrimLevel};
use calora::quant::Bits;
use calora::session::{Session, SessionOptions};
use calora::weights::DType;
use common::{random_model, random_tail, scheme};
use serde_json::{Value, json};

/// Positions of a session, all of which are written.
const CONTEXT: usize = 512;
const SESSIONS: usize = 8;
const MB: f64 = 1e6;

/// Much cache for little computation: 33.5 MB for a session of [`CONTEXT`] positions in float32; 56 MB of weights.
fn config() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 128000,
        "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false
    })
}

/// Bytes of memory that no file is behind. Mapped pages are left out: the system maps them in larger pieces than are read.
fn anonymous() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Bytes of a file's mapped pages that this process holds.
fn held_of(file: &Path) -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let name = file.to_str().unwrap();
    let (mut within, mut held) = (false, 0);
    for line in maps.lines() {
        // A map's first line begins with its addresses; its fields begin with their names.
        if line.split(' ').next().is_some_and(|first| first.contains('-')) {
            within = line.ends_with(name);
        }
        if within && let Some(size) = line.strip_prefix("Rss:") {
            held += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
        }
    }
    held
}

/// Fills every cache to its last position, each session under an adapter of its own.
fn fill(engine: &Engine, sessions: usize) -> Vec<Session> {
    let vocab = engine.model_info().shape.vocab;
    let ids: Vec<u32> = (0..CONTEXT).map(|i| (i * 7919 % vocab) as u32).collect();
    let adapters =
        [7, 8].map(|seed| engine.adapter("task", random_tail(engine.recipe(), 16, 8, DType::F16, seed)));
    (0..sessions)
        .map(|n| {
            let adapters = vec![(adapters[n % 2].clone(), 1.0)];
            let options = SessionOptions { adapters, ..SessionOptions::default() };
            let mut session = engine.session(options).unwrap();
            session
                .visit_logits(&ids, CONTEXT - 1, |_, row| assert!(row.iter().all(|v| v.is_finite())))
                .unwrap();
            session
        })
        .collect()
}

/// Loads and fills an engine; what it added to the process's memory and its plan.
fn measured(
    folder: &Path,
    options: EngineOptions,
    sessions: usize,
    keep: impl FnOnce(&Engine),
) -> (u64, MemoryPlan) {
    let first = Engine::load(folder, options.clone()).unwrap();
    let tail = random_tail(first.recipe(), 16, 8, DType::F16, 7);
    let budget = 2 * first.adapter_bytes(&first.adapter("task", tail)).unwrap();
    drop(first);
    let memory = MemoryOptions { sessions: Some(sessions), ..MemoryOptions::default() };
    let options = EngineOptions { adapter_budget: Some(budget), prefix_budget: Some(0), memory, ..options };
    let before = anonymous();
    let engine = Engine::load(folder, options).unwrap();
    let open = fill(&engine, sessions);
    let added = anonymous().saturating_sub(before);
    keep(&engine);
    drop(open);
    (added, engine.memory_plan().unwrap().clone())
}

/// Within a tenth and 50 MB, both ways.
fn close(what: &str, added: u64, planned: u64) {
    let (added, planned) = (added as f64 / MB, planned as f64 / MB);
    let line = format!("{what}: {added:.1} MB added to the process, {planned:.1} MB planned");
    tell(&line);
    assert!((added - planned).abs() <= 0.1 * planned + 50.0, "{line}");
}

/// One part of the test, in a process of its own: allocators keep what was freed.
fn phase(name: &str, model: &Path) {
    let file = model.join("model.safetensors");
    let cpu = EngineOptions { device: DeviceChoice::Cpu, threads: Some(2), ..EngineOptions::default() };
    match name {
        "weights" => weights_are_pages(model, &file, cpu),
        "f32" | "int8" => {
            let activations = if name == "f32" { ActivationChoice::F32 } else { ActivationChoice::Int8 };
            let (added, plan) = measured(model, EngineOptions { activations, ..cpu }, SESSIONS, |_| ());
            assert!(plan.private() > 120_000_000, "{plan}");
            close(&format!("CPU {name}"), added, plan.private());
        }
        "copied" => {
            let copied = EngineOptions { weights: WeightAccess::Copied, ..cpu };
            let (added, plan) = measured(model, copied, SESSIONS, |_| ());
            assert!(plan.total() > 120_000_000 + plan.weights, "{plan}");
            close("CPU, copied weights", added, plan.total());
        }
        "gpu" => {
            // Software Vulkan's memory is the process's; so is its compiler's, which is loaded first.
            let gpu = EngineOptions { device: DeviceChoice::Gpu, ..EngineOptions::default() };
            let (added, plan) = measured(model, gpu, 1, |engine| {
                let (held, weights) = (held_of(&file), engine.memory().weights);
                assert!(
                    held < 1 << 20,
                    "{held} bytes of the file's pages stayed beside {weights} on the GPU"
                );
            });
            tell(&format!(
                "GPU (software): {:.1} MB added, {:.1} MB planned",
                added as f64 / MB,
                plan.total() as f64 / MB
            ));
        }
        other => panic!("{other}"),
    }
}

/// Weights of the CPU are their file's pages and nothing else.
fn weights_are_pages(model: &Path, file: &Path, options: EngineOptions) {
    let before = anonymous();
    let engine = Engine::load(model, options).unwrap();
    let small = SessionOptions { context_size: Some(8), ..SessionOptions::default() };
    engine.session(small).unwrap().visit_logits(&[1, 2, 3], 2, |_, _| ()).unwrap();
    let (added, weights) = (anonymous().saturating_sub(before), engine.memory().weights);
    assert!(weights > 50_000_000, "{weights}");
    tell(&format!(
        "CPU: {:.1} MB of private memory beside {:.1} MB of weights",
        added as f64 / MB,
        weights as f64 / MB
    ));
    assert!(
        (added as f64) < 0.05 * weights as f64,
        "{added} bytes of private memory beside {weights} of weights"
    );
    let embedding = engine.model().weights.matrices[0].byte_len() as u64;
    let held = held_of(file);
    assert!(
        held as f64 > 0.9 * (weights - embedding) as f64,
        "the map was read: {held} of {weights} - {embedding}"
    );
    let report = engine.trim(TrimLevel::Critical);
    assert_eq!(report.mapped, engine.model().weights.byte_len());
    let left = held_of(file);
    assert!(left < 1 << 20, "{left} bytes of pages are left of {held}");
}

/// Past the test harness, which shows nothing of what a passing test prints.
fn tell(line: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), format!("{line}\n").as_bytes()).unwrap();
}

/// Not a test: what [`resident_memory_is_as_planned_and_no_weight_is_held_twice`] runs in processes of their own.
#[test]
#[ignore = "a child process of another test"]
fn in_a_process_of_its_own() {
    if let (Ok(name), Some(model)) = (std::env::var("CALORA_PHASE"), std::env::var_os("CALORA_MODEL")) {
        phase(&name, Path::new(&model));
    }
}

#[test]
fn resident_memory_is_as_planned_and_no_weight_is_held_twice() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().canonicalize().unwrap().join("model");
    // Zero points lie across rows in the file: of all schemes this one tempts most to lay something out anew.
    let store = scheme(Bits::Int8, Some(32), false);
    folder::write(&random_model(&config(), store, 5), &config(), &model);
    for name in ["weights", "f32", "int8", "copied", "gpu"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "in_a_process_of_its_own"])
            .env("CALORA_PHASE", name)
            .env("CALORA_MODEL", &model)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        let all = format!("{said}{}", String::from_utf8_lossy(&child.stdout));
        assert!(child.status.success() && all.contains("1 passed"), "{name}: {all}");
        said.lines().filter(|line| line.contains(" MB")).for_each(tell);
    }
}
