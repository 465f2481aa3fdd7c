//! Canaries: an adapter that acts as recorded is recognised on every device; one that was damaged, or has the branches of
//! another, is refused. The tolerances and what they were measured on stand in `runtime/adapter/canary.rs`.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use calora::Error;
use calora::adapter::{
    AdapterInfo, AdapterOptions, Branch, BranchStorage, CanaryVerdict, LowRank, TaskAdapter, write_task_file,
};
use calora::engine::{ActivationChoice, DeviceChoice, Engine, EngineOptions};
use calora::weights::Tensor;

const TASKS: [&str; 7] =
    ["clean-question", "intent", "novelist", "playwright", "router", "sentiment", "spam"];

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(path)
}

fn engine(device: DeviceChoice) -> Engine {
    let activations = ActivationChoice::F32;
    let options = EngineOptions { device, activations, threads: Some(2), ..EngineOptions::default() };
    Engine::load(shipped("base"), options).unwrap()
}

/// A task's LoRA and what a file with a record of it says of itself.
fn recorded(engine: &Engine, task: &str) -> (TaskAdapter, AdapterInfo) {
    let adapter = TaskAdapter::open(shipped("adapters").join(task)).unwrap();
    let (bound, _) = engine.bind_adapter(&adapter).unwrap();
    let prompt = engine.tokenizer().unwrap().encode("play some music in the kitchen").unwrap();
    let canary = Some(engine.record_canary(&bound, &prompt).unwrap());
    let info = AdapterInfo { canary, ..adapter.info().clone() };
    (adapter, info)
}

/// Writes a task file whose branches went through `edit`.
fn write(path: &Path, info: &AdapterInfo, adapter: &TaskAdapter, edit: &dyn Fn(Branch) -> Branch) {
    let modules = adapter
        .modules()
        .map(|(module, branches)| (module.to_owned(), branches.iter().cloned().map(edit).collect()))
        .collect();
    write_task_file(path, info, None, &modules, BranchStorage::F16).unwrap();
}

fn checked() -> AdapterOptions {
    AdapterOptions { canary: true, ..AdapterOptions::default() }
}

#[test]
fn every_shipped_task_is_recognised_on_both_devices() {
    let folder = tempfile::tempdir().unwrap();
    let (cpu, gpu) = (engine(DeviceChoice::Cpu), engine(DeviceChoice::Gpu));
    for task in TASKS {
        let path = folder.path().join(format!("{task}.safetensors"));
        let (adapter, info) = recorded(&cpu, task);
        write(&path, &info, &adapter, &|branch| branch);
        for engine in [&cpu, &gpu] {
            let bound = engine.open_adapter_with(&path, &checked()).unwrap();
            let report = engine.check_canary(&bound).unwrap();
            assert_eq!(report.verdict, CanaryVerdict::AsRecorded, "{report:?}");
            assert!(report.cosine.unwrap() > 0.9999 && report.change > 0.05, "{report:?}");
        }
    }
}

fn reversed(branch: Branch) -> Branch {
    let (rows, cols) = branch.up.shape();
    let values: Vec<f32> = branch.up.to_f32().unwrap().chunks(cols).rev().flatten().copied().collect();
    Branch { up: LowRank::Float(Tensor::from_f32("up", &[rows, cols], &values).unwrap()), ..branch }
}

#[test]
fn an_adapter_that_does_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    let engine = engine(DeviceChoice::Cpu);
    let tasks: Vec<_> = TASKS.iter().map(|task| recorded(&engine, task)).collect();
    let refused = |what: &str, word: &str| {
        // It fits by its shapes.
        engine.open_adapter(&path).unwrap();
        match engine.open_adapter_with(&path, &checked()) {
            Err(Error::CanaryFailed { reason, .. }) => assert!(reason.contains(word), "{what}: {reason}"),
            other => panic!("{what}: {other:?}"),
        }
    };
    for (index, (adapter, info)) in tasks.iter().enumerate() {
        let name = &info.name;
        for (what, factor) in [("doubled", 2.0), ("halved", 0.5)] {
            write(&path, info, adapter, &|b| Branch { scaling: b.scaling * factor, ..b });
            refused(&format!("{name} {what}"), "another way");
        }
        write(&path, info, adapter, &reversed);
        refused(&format!("{name} with rows reversed"), "another way");
        write(&path, info, &tasks[(index + 1) % tasks.len()].0, &|b| b);
        refused(&format!("{name} with the branches of the next"), "another way");
        write(&path, info, adapter, &|b| Branch { scaling: 0.0, ..b });
        refused(&format!("{name} without effect"), "the same without it");
    }
}

#[test]
fn without_a_record_an_adapter_must_change_the_logits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    for engine in [engine(DeviceChoice::Cpu), engine(DeviceChoice::Gpu)] {
        let bound = engine.open_adapter_with(shipped("adapters/spam"), &checked()).unwrap();
        let report = engine.check_canary(&bound).unwrap();
        assert_eq!((report.verdict, report.cosine), (CanaryVerdict::Acts, None));
        let adapter = TaskAdapter::open(shipped("adapters/spam")).unwrap();
        write(&path, adapter.info(), &adapter, &|b| Branch { scaling: 0.0, ..b });
        let error = engine.open_adapter_with(&path, &checked()).unwrap_err();
        assert!(matches!(error, Error::CanaryFailed { .. }), "{error}");
        let idle = engine.open_adapter(&path).unwrap();
        let error = engine.record_canary(&idle, &[1, 2, 3]).unwrap_err();
        assert!(matches!(error, Error::CanaryFailed { .. }), "{error}");
    }
}

#[test]
fn a_record_of_another_vocabulary_and_impossible_prompts_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("task.safetensors");
    let engine = engine(DeviceChoice::Cpu);
    let (adapter, info) = recorded(&engine, "spam");
    for at in [true, false] {
        let mut info = info.clone();
        let canary = info.canary.as_mut().unwrap();
        let list = if at { &mut canary.prompt } else { &mut canary.tokens };
        list[0] = 4096;
        write(&path, &info, &adapter, &|branch| branch);
        match engine.open_adapter_with(&path, &checked()) {
            Err(Error::CanaryFailed { reason, .. }) => assert!(reason.contains("4096 tokens"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
    let bound = engine.open_adapter(&path).unwrap();
    assert!(matches!(engine.record_canary(&bound, &[]), Err(Error::EmptyPrompt)));
    assert!(matches!(engine.record_canary(&bound, &[1; 65]), Err(Error::InvalidOption { .. })));
    assert!(matches!(engine.record_canary(&bound, &[4096]), Err(Error::TokenOutOfRange { .. })));
}

#[test]
fn a_check_leaves_sessions_and_caches_as_they_were() {
    let engine = engine(DeviceChoice::Cpu);
    let ids = [5, 6, 7, 8];
    let before = engine.logits(&ids, &[]).unwrap();
    let caches = engine.memory().caches;
    let bound = engine.open_adapter_with(shipped("adapters/spam"), &checked()).unwrap();
    assert_eq!(engine.memory().caches, caches);
    assert_ne!(engine.logits(&ids, &[(bound, 1.0)]).unwrap(), before);
    assert_eq!(engine.logits(&ids, &[]).unwrap(), before);
}
