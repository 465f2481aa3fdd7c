//! Hundreds of task files cost their headers. Alone in its program: it counts what the whole process holds.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use calora::adapter::{AdapterInfo, Branch, BranchKind, BranchStorage, LowRank, write_task_file};
use calora::arch::LinearId;
use calora::engine::{DeviceChoice, Engine, EngineOptions};
use calora::library::AdapterLibrary;
use calora::weights::Tensor;

const FILES: usize = 500;
/// Beside every linear of the base: files of some 1.5 MB with a header as real tasks have it.
const RANK: usize = 24;

/// Bytes of memory that this process has, mapped pages that were touched included.
fn resident_set() -> usize {
    let pages: usize =
        fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Bytes of memory that this process has of its own: no mapped file among them.
fn own_memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn five_hundred_files_cost_their_headers() {
    let options = EngineOptions { device: DeviceChoice::Cpu, ..EngineOptions::default() };
    let engine = Engine::load(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/base"), options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tensor = |name, shape: [usize; 2]| {
        LowRank::Float(Tensor::from_f32(name, &shape, &vec![0.0; shape[0] * shape[1]]).unwrap())
    };
    let recipe = engine.recipe();
    let branch = |id| {
        let (rows, cols) = recipe.linear_shape(LinearId(id));
        let (down, up) = (tensor("down", [RANK, cols]), tensor("up", [rows, RANK]));
        vec![Branch { kind: BranchKind::Lora, scaling: 1.0, down, up }]
    };
    let modules: BTreeMap<String, Vec<Branch>> =
        recipe.linears.iter().enumerate().map(|(id, linear)| (linear.path.clone(), branch(id))).collect();
    let info = AdapterInfo { name: "many".into(), ..AdapterInfo::default() };
    let whole = folder.path().join("whole");
    write_task_file(&whole, &info, None, &modules, BranchStorage::F16).unwrap();
    let bytes = fs::read(&whole).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for i in 0..FILES {
        let mut file = File::create(folder.path().join(format!("task-{i:03}.safetensors"))).unwrap();
        file.write_all(&bytes[..header]).unwrap();
        // The rest is a hole: it takes no disk, and memory as soon as it is read.
        file.set_len(bytes.len() as u64).unwrap();
    }
    let total = FILES * bytes.len();
    drop(bytes);

    let (memory, own, files) = (resident_set(), own_memory(), open_files());
    let library = AdapterLibrary::open(&engine, folder.path()).unwrap();
    for entry in library.entries() {
        library.get(&entry.name).unwrap();
    }
    let entries = library.entries();
    assert_eq!(entries.len(), FILES);
    assert!(entries.iter().all(|e| e.resident_bytes == 0 && e.error.is_none()));
    assert_eq!(entries.iter().map(|e| e.mapped_bytes as usize).sum::<usize>(), total - FILES * header);
    assert_eq!(engine.memory().tails, 0);
    let grown = resident_set().saturating_sub(memory);
    let own = own_memory().saturating_sub(own);
    println!("{} bytes of memory for each header of {header}", own / FILES);
    assert!(own < FILES * header, "{} bytes of memory for each header of {header}", own / FILES);
    // The system maps up to 16 pages around one that is touched.
    assert!(grown < FILES * (64 << 10) * 3 / 2, "{grown} bytes for {FILES} headers");
    assert!(grown < total / 10, "{grown} of {total} bytes");
    assert_eq!(open_files(), files);
    assert!(library.refresh().unwrap().is_empty());
}
