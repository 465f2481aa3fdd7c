//! A program that is killed while it writes leaves what was there or what was to come, never half of it.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn models(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn calora(arguments: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calora"));
    command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What lies in a folder under a temporary name.
fn partial(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.to_string_lossy().contains(".partial")).collect()
}

/// Runs a command and kills it as soon as it writes something in `folder` and `when` agrees; whether it got so far.
fn kill(mut command: Command, folder: &Path, when: impl Fn(&Path) -> bool) -> bool {
    let mut child = command.spawn().unwrap();
    while child.try_wait().unwrap().is_none() {
        if partial(folder).iter().any(|path| when(path)) {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        std::thread::yield_now();
    }
    false
}

/// All files of a folder with their content, by name.
fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        entries.map(|path| (path.file_name().unwrap().into(), fs::read(&path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn a_model_folder_is_there_whole_or_not_at_all() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, out, whole) = (models("base"), scratch.path().join("int4"), scratch.path().join("whole"));
    let compress =
        |out: &Path| calora(&[Path::new("compress"), &base, out, Path::new("--scheme"), Path::new("int4")]);
    assert!(compress(&whole).status().unwrap().success());
    // At once, and when so many files of it are there.
    for files in [0, 1, 3] {
        let so_far = |path: &Path| fs::read_dir(path).is_ok_and(|entries| entries.count() >= files);
        let killed = kill(compress(&out), scratch.path(), so_far);
        // The weights take long; the last files may be there only shortly before the new name.
        assert!(killed || files > 1, "it was over before it was killed");
        if out.exists() {
            assert_eq!(content(&out), content(&whole));
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(!out.exists());
    // What was left lying about is in nobody's way.
    assert!(!partial(scratch.path()).is_empty());
    assert!(compress(&out).status().unwrap().success());
    assert_eq!(content(&out), content(&whole));
}

#[test]
fn a_task_file_is_the_old_one_or_the_new_one() {
    let scratch = tempfile::tempdir().unwrap();
    let (base, out) = (models("base"), scratch.path().join("task.safetensors"));
    let pack = |name: &str| {
        let task = models("adapters").join(name);
        calora(&[
            Path::new("pack"),
            &task,
            Path::new("--base"),
            &base,
            Path::new("--out"),
            &out,
            Path::new("--force"),
        ])
    };
    let versions = ["intent", "spam"].map(|name| {
        assert!(pack(name).status().unwrap().success());
        fs::read(&out).unwrap()
    });
    assert_ne!(versions[0], versions[1]);
    // At once, and when all of it is written but perhaps not renamed, until some kills have met a write, which is short;
    // whether one did or not, what is there is whole.
    let mut killed = 0;
    for round in 0..100 {
        let (version, least) = (round % 2, [0, versions[round % 2].len() as u64][round / 2 % 2]);
        let so_far = |path: &Path| fs::metadata(path).is_ok_and(|info| info.len() >= least);
        killed += usize::from(kill(pack(["intent", "spam"][version]), scratch.path(), so_far));
        let there = fs::read(&out).unwrap();
        assert!(versions.contains(&there), "round {round}: {} bytes", there.len());
        for left in partial(scratch.path()) {
            fs::remove_file(left).unwrap();
        }
        if killed == 8 {
            break;
        }
    }
}
