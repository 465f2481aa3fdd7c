//! Put-aside beginnings that outlive the process: one file for each, named by everything that decides its content.
//!
//! Content: [`crate::device::position_bytes`] for each token. A cache: a file that is missing, damaged or cannot be written
//! costs its computation and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::resident::AdapterList;
use crate::device::DeviceInfo;
use crate::weights::{read_checked, write_checked};

const MAGIC: &[u8; 8] = b"caloraKV";
const EXTENSION: &str = "kv";

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
        let path = self.path(tokens, list, device)?;
        let expected = tokens.len() * self.line;
        read_checked(&path, MAGIC, expected as u64).filter(|bytes| bytes.len() == expected)
    }

    /// Keeps a beginning, and removes the oldest files beyond the budget.
    pub(super) fn write(&self, tokens: &[u32], list: &AdapterList, device: &DeviceInfo, bytes: &[u8]) {
        let Some(path) = self.path(tokens, list, device) else { return };
        if path.exists() || bytes.len() as u64 > self.budget {
            return;
        }
        if let Err(e) = write_checked(&path, MAGIC, bytes) {
            log::warn!("a prefix was not kept: {e}");
        }
        self.prune();
    }

    /// None where an adapter is encrypted, so that nothing of it reaches a file, or cannot be read.
    fn path(&self, tokens: &[u32], list: &AdapterList, device: &DeviceInfo) -> Option<PathBuf> {
        // What another device, driver or precision computed differs in its last digits.
        let DeviceInfo { kind, name, detail, activations, .. } = device;
        let origin = format!("{} {kind} {name} {detail} {activations:?}", self.model);
        let mut hash = blake3::Hasher::new();
        hash.update(MAGIC).update(origin.as_bytes()).update(&(list.items.len() as u64).to_le_bytes());
        for (adapter, scale) in &list.items {
            if adapter.tail().is_private() {
                return None;
            }
            hash.update(&adapter.digest().ok()?).update(&scale.to_bits().to_le_bytes());
        }
        tokens.iter().for_each(|token| _ = hash.update(&token.to_le_bytes()));
        Some(self.folder.join(hash.finalize().to_hex().as_str()).with_extension(EXTENSION))
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

/// Files of prefixes: when written, bytes, path.
fn kept(folder: &Path) -> Vec<(SystemTime, u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == EXTENSION));
    let facts = |entry: fs::DirEntry| {
        let facts = entry.metadata().ok()?;
        Some((facts.modified().ok()?, facts.len(), entry.path()))
    };
    files.filter_map(facts).collect()
}
