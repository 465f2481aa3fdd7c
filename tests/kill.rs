//! A process that is killed while it writes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

/// Bytes of each version of the file that the child writes.
const VERSION: usize = 8 << 20;

/// Not a test: what [`a_killed_write_leaves_the_old_file_or_the_new`] runs in a process of its own.
#[test]
#[ignore = "a child process of another test"]
fn write_without_end() {
    let Some(path) = std::env::var_os("CALORA_WRITE_WITHOUT_END") else { return };
    for version in 0.. {
        calora::weights::write_atomically(Path::new(&path), &vec![version as u8; VERSION]).unwrap();
    }
}

#[test]
fn a_killed_write_leaves_the_old_file_or_the_new() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let partial = || {
        let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == "partial")).collect::<Vec<_>>()
    };
    let mut in_the_middle = 0;
    for round in 0..12 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "write_without_end"])
            .env("CALORA_WRITE_WITHOUT_END", &path)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // At a different point of the write each time: when so much of a new version is on its way.
        let wanted = (VERSION / 13 * (round + 1)) as u64;
        let half = || partial().iter().filter_map(|p| p.metadata().ok()).any(|m| m.len() >= wanted);
        while !(path.exists() && half()) {
            assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == VERSION && bytes.iter().all(|byte| *byte == bytes[0]), "round {round}");
        for left in partial() {
            in_the_middle += 1;
            std::fs::remove_file(left).unwrap();
        }
    }
    assert!(in_the_middle > 0, "no kill met a write");
}
