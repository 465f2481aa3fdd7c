//! What tasks cost the processor over the shipped base: first uses, and passes with one attached.
//!
//! `cargo bench --bench tasks` prints JSON lines. Linux only: it counts processor time, which a busy machine changes
//! little, where a clock would count its neighbours. Under the test profile read ratios only.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::Path;

use calora::adapter::{BranchStorage, TaskAdapter, write_task_file};
use calora::engine::{BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::library::AdapterLibrary;
use calora::session::{GenerationOptions, SessionOptions};

const TASKS: usize = 200;
const ROUNDS: usize = 8;

/// Milliseconds that this thread has computed; exact to a few over a long stretch.
fn thread_ms() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

/// Milliseconds that the process has computed, in steps of 10.
fn process_ms() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    10.0 * (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap())
}

fn respond(engine: &Engine, adapters: &[(BoundAdapter, f32)], prompt: usize, output: usize) -> f64 {
    let vocab = engine.model_info().shape.vocab as u64;
    let tokens: Vec<u32> = (0..prompt as u64).map(|i| (i * 7919 % vocab) as u32).collect();
    let of_session = SessionOptions {
        adapters: adapters.to_vec(),
        context_size: Some(prompt + output),
        ..SessionOptions::default()
    };
    let options = GenerationOptions {
        temperature: Some(0.0),
        max_tokens: Some(output),
        repetition_penalty: Some(1.0),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    let mut session = engine.session(of_session).unwrap();
    let start = process_ms();
    session.respond_to_tokens(&tokens, &options).unwrap().collect().unwrap();
    process_ms() - start
}

fn main() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let options = EngineOptions { device: DeviceChoice::Cpu, ..EngineOptions::default() };
    let engine = Engine::load(models.join("base"), options).unwrap();
    let adapter = TaskAdapter::open(models.join("adapters/intent")).unwrap();
    let modules = adapter.modules().map(|(path, list)| (path.to_owned(), list.to_vec())).collect();
    let folder = tempfile::tempdir().unwrap();
    let first = folder.path().join("task-000.safetensors");
    write_task_file(&first, adapter.info(), None, &modules, BranchStorage::F16).unwrap();
    for i in 1..TASKS {
        fs::copy(&first, folder.path().join(format!("task-{i:03}.safetensors"))).unwrap();
    }

    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    let names: Vec<String> = library.entries().into_iter().map(|entry| entry.name).collect();
    let bound: Vec<BoundAdapter> = names.iter().map(|name| library.get(name).unwrap()).collect();
    let mb = bound[0].tail().byte_len() as f64 / 1e6;
    let mut session =
        engine.session(SessionOptions { context_size: Some(1), ..SessionOptions::default() }).unwrap();
    let start = thread_ms();
    for adapter in &bound {
        session.switch_to(&[(adapter.clone(), 1.0)]).unwrap();
    }
    let ms = (thread_ms() - start) / TASKS as f64;
    println!("{{\"first_use_ms\": {ms:.3}, \"ms_per_mb\": {:.3}}}", ms / mb);

    let with = [(bound[0].clone(), 1.0)];
    for (prompt, output) in [(256, 1), (8, 96)] {
        let (mut plain, mut attached) = (0.0, 0.0);
        for _ in 0..ROUNDS {
            plain += respond(&engine, &[], prompt, output);
            attached += respond(&engine, &with, prompt, output);
        }
        let more = attached / plain - 1.0;
        println!(
            "{{\"prompt\": {prompt}, \"output\": {output}, \"plain_ms\": {plain:.0}, \"attached\": {more:.4}}}"
        );
    }
}
