//! What was computed and outlives the process: one file for each, named by everything that decides its content.
//!
//! Put-aside beginnings, [`crate::device::position_bytes`] for each token; and notes, whatever their subject makes of them.
//! A cache: a file that is missing, damaged or cannot be written costs its computation and nothing else.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::resident::AdapterList;
use crate::device::DeviceInfo;
use crate::weights::checked::Magic;
use crate::weights::{read_checked, write_checked};

/// A kind of files: what they begin with, and their extension.
type Kind = (&'static Magic, &'static str);

const BEGINNING: Kind = (b"caloraKV", "kv");
const NOTE: Kind = (b"caloraNT", "note");

/// A folder of such files.
#[derive(Debug)]
pub(crate) struct PrefixFiles {
    folder: PathBuf,
    /// Names the model.
    model: String,
    /// Of one position.
    line: usize,
    /// Bytes of all files; the oldest go first.
    budget: u64,
}

impl PrefixFiles {
    pub(crate) fn new(folder: PathBuf, model: String, line: usize, budget: u64) -> Self {
        Self { folder, model, line, budget }
    }

    /// What was kept for exactly these tokens under these adapters.
    pub(super) fn read(&self, tokens: &[u32], list: &AdapterList, device: &DeviceInfo) -> Option<Vec<u8>> {
        let path = self.path(BEGINNING, bytemuck::cast_slice(tokens), list, device)?;
        let expected = tokens.len() * self.line;
        read_checked(&path, BEGINNING.0, expected as u64).filter(|bytes| bytes.len() == expected)
    }

    /// Keeps a beginning, and removes the oldest files beyond the budget.
    pub(super) fn write(&self, tokens: &[u32], list: &AdapterList, device: &DeviceInfo, bytes: &[u8]) {
        self.keep(BEGINNING, bytemuck::cast_slice(tokens), list, device, bytes);
    }

    /// What was noted of a subject under these adapters.
    pub(super) fn read_note(
        &self,
        subject: &[u8],
        list: &AdapterList,
        device: &DeviceInfo,
    ) -> Option<Vec<u8>> {
        read_checked(&self.path(NOTE, subject, list, device)?, NOTE.0, self.budget)
    }

    /// Notes something of a subject, and removes the oldest files beyond the budget.
    pub(super) fn write_note(&self, subject: &[u8], list: &AdapterList, device: &DeviceInfo, bytes: &[u8]) {
        self.keep(NOTE, subject, list, device, bytes);
    }

    fn keep(&self, kind: Kind, subject: &[u8], list: &AdapterList, device: &DeviceInfo, bytes: &[u8]) {
        let Some(path) = self.path(kind, subject, list, device) else { return };
        if path.exists() || bytes.len() as u64 > self.budget {
            return;
        }
        if let Err(e) = write_checked(&path, kind.0, bytes) {
            log::warn!("what was computed was not kept: {e}");
        }
        self.prune();
    }

    /// None where an adapter is encrypted, so that nothing of it reaches a file, or cannot be read.
    fn path(
        &self,
        (magic, extension): Kind,
        subject: &[u8],
        list: &AdapterList,
        device: &DeviceInfo,
    ) -> Option<PathBuf> {
        // What another device, driver or precision computed differs in its last digits.
        let DeviceInfo { kind, name, detail, activations, .. } = device;
        let origin = format!("{} {kind} {name} {detail} {activations:?}", self.model);
        let mut hash = blake3::Hasher::new();
        hash.update(magic).update(origin.as_bytes()).update(&(list.items.len() as u64).to_le_bytes());
        for (adapter, scale) in &list.items {
            if adapter.tail().is_private() {
                return None;
            }
            hash.update(&adapter.digest().ok()?).update(&scale.to_bits().to_le_bytes());
        }
        hash.update(subject);
        Some(self.folder.join(hash.finalize().to_hex().as_str()).with_extension(extension))
    }

    fn prune(&self) {
        let mut files = kept(&self.folder);
        files.sort();
        let mut total: u64 = files.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in files {
            if total <= self.budget {
                return;
            }
            if let Err(e) = fs::remove_file(&path) {
                log::warn!("{}: {e}", path.display());
            }
            total -= size;
        }
    }
}

/// Files of both kinds: when written, bytes, path.
fn kept(folder: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = |e: &OsStr| [BEGINNING, NOTE].iter().any(|(_, extension)| e == *extension);
    let files = entries.filter(|entry| entry.path().extension().is_some_and(ours));
    let facts = |entry: fs::DirEntry| {
        let facts = entry.metadata().ok()?;
        Some((facts.modified().ok()?, facts.len(), entry.path()))
    };
    files.filter_map(facts).collect()
}
