//! The folder's side of a library: which files are adapters, and replacing one so that exactly one of several wins.
//!
//! Invariant: an adapter's file is complete under its name at any moment, whoever is killed when. What lies beside its
//! place has a name that no scan takes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::version::Version;
use crate::error::{Error, Result};
use crate::weights::{Staged, is_plain_name};

const EXTENSION: &str = "safetensors";
/// What begins the names of half-written and half-removed things.
const BESIDE: &str = ".calora-library-";
/// What ends them; [`Staged`] adds the same.
const PARTIAL: &str = ".partial";
/// Held by whoever changes the folder.
const LOCK: &str = ".calora-library.lock";

/// A folder of adapters.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
}

/// Nobody else changes a folder while this lives.
struct Writing {
    _process: MutexGuard<'static, ()>,
    _lock: File,
}

impl Folder {
    /// Task files and PEFT folders by name. Where both have one name, the task file is the adapter.
    pub(super) fn list(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))? {
            let path = entry.map_err(|e| Error::io(&self.path, e))?.path();
            let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
            let Some(name) = name.and_then(|n| n.to_str()).filter(|n| is_name(n)) else { continue };
            if self.place(name).as_ref() == Some(&path) {
                found.insert(name.to_owned(), path);
            }
        }
        Ok(found)
    }

    /// Where the adapter of this name is.
    pub(super) fn place(&self, name: &str) -> Option<PathBuf> {
        let (file, folder) = (self.file(name), self.path.join(name));
        if file.is_file() {
            return Some(file);
        }
        folder.join("adapter_config.json").exists().then_some(folder)
    }

    /// The task file of this name, which may not be there.
    fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.{EXTENSION}"))
    }

    /// Puts a copy of a task file in an adapter's place if the adapter is as `expected`; `check` sees the copy first.
    pub(super) fn replace(
        &self,
        name: &str,
        expected: Option<&Version>,
        source: &Path,
        check: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Version> {
        let _writing = self.write()?;
        self.compare(name, expected)?;
        let mut staged = Staged::new(&self.path.join(format!("{BESIDE}{name}")))?;
        let mut from = File::open(source).map_err(|e| Error::io(source, e))?;
        copy(&mut from, staged.file()).map_err(|e| Error::io(source, e))?;
        check(staged.path())?;
        let place = self.file(name);
        staged.commit(&place)?;
        // The file is the adapter from here on; a PEFT folder that was it before only takes room.
        self.remove_folder(name)?;
        Version::at(&place).map_err(|e| Error::io(place, e))
    }

    /// Removes an adapter if it is as `expected`.
    pub(super) fn remove(&self, name: &str, expected: &Version) -> Result<()> {
        let _writing = self.write()?;
        self.compare(name, Some(expected))?;
        // The folder first: after the file it would be the adapter again.
        self.remove_folder(name)?;
        let file = self.file(name);
        if file.is_file() {
            fs::remove_file(&file).map_err(|e| Error::io(file, e))?;
        }
        Ok(())
    }

    fn compare(&self, name: &str, expected: Option<&Version>) -> Result<()> {
        if !is_name(name) {
            return Err(Error::option("adapter name", name, "must be the name of a file, without a folder"));
        }
        let actual = self.place(name).map(|p| Version::at(&p).map_err(|e| Error::io(p, e))).transpose()?;
        if actual.as_ref() == expected {
            return Ok(());
        }
        let text = |version: Option<&Version>| version.map(Version::to_string);
        let (expected, actual) = (text(expected), text(actual.as_ref()));
        Err(Error::VersionConflict { adapter: name.to_owned(), expected, actual })
    }

    /// Moves a PEFT folder out of its place in one step, then removes it.
    fn remove_folder(&self, name: &str) -> Result<()> {
        let folder = self.path.join(name);
        if !folder.join("adapter_config.json").exists() {
            return Ok(());
        }
        let beside = self.path.join(format!("{BESIDE}{name}{PARTIAL}"));
        fs::rename(&folder, &beside)
            .and_then(|()| fs::remove_dir_all(&beside))
            .map_err(|e| Error::io(folder, e))
    }

    /// Waits until nobody else changes the folder, and removes what somebody who was killed left there.
    fn write(&self) -> Result<Writing> {
        static PROCESS: Mutex<()> = Mutex::new(());
        let process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.join(LOCK);
        let lock = File::create(&path).map_err(|e| Error::io(&path, e))?;
        // Other processes, where the system can; the lock goes with the handle, also when a process is killed.
        match lock.lock() {
            Err(e) if e.kind() != std::io::ErrorKind::Unsupported => return Err(Error::io(&path, e)),
            _ => {}
        }
        for entry in fs::read_dir(&self.path).map_err(|e| Error::io(&self.path, e))?.flatten() {
            let name = entry.file_name();
            if name.to_str().is_some_and(|n| n.starts_with(BESIDE) && n.ends_with(PARTIAL)) {
                let path = entry.path();
                // Only rubbish: it disturbs nobody if it stays.
                let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            }
        }
        Ok(Writing { _process: process, _lock: lock })
    }
}

/// Whether an adapter may have this name; hidden files are nobody's adapters.
fn is_name(name: &str) -> bool {
    is_plain_name(name) && !name.starts_with('.')
}

/// All of a file. `std::io::copy` would have the library import `copy_file_range`, which Android has since API 34 only.
fn copy(from: &mut File, to: &mut File) -> std::io::Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            len => to.write_all(&piece[..len])?,
        }
    }
}
