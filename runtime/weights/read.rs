//! Small files read whole: bytes and JSON, with one place that recognises Git LFS pointers.
//!
//! Invariant: every error names the file; nothing is read that is larger than its caller expects.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// What every pointer file begins with; the rest of the line is the address of the specification.
const LFS_PREFIX: &[u8] = b"version https://git-lfs";
/// Pointers are about 130 bytes; the specification says under 1024.
const LFS_LARGEST: usize = 1024;

/// Refuses content that is a Git LFS pointer.
pub(crate) fn refuse_lfs_pointer(path: &Path, content: &[u8]) -> Result<()> {
    if content.len() > LFS_LARGEST || !content.starts_with(LFS_PREFIX) {
        return Ok(());
    }
    let size = String::from_utf8_lossy(content)
        .lines()
        .find_map(|line| line.strip_prefix("size ")?.trim().parse().ok())
        .unwrap_or(0);
    Err(Error::LfsPointer { path: path.to_owned(), size })
}

/// The content of a file of at most `largest` bytes.
pub(crate) fn read_bytes(path: &Path, largest: u64) -> Result<Vec<u8>> {
    // Asked before opening: opening a named pipe would wait for a writer.
    let info = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !info.is_file() {
        return Err(Error::malformed(path, "is not a regular file"));
    }
    if info.len() > largest {
        let reason = format!("is {} bytes long, more than the {largest} expected of such a file", info.len());
        return Err(Error::malformed(path, reason));
    }
    let content = fs::read(path).map_err(|e| Error::io(path, e))?;
    refuse_lfs_pointer(path, &content)?;
    Ok(content)
}

/// A JSON file (configurations and shard indices: at most 64 MiB).
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let content = read_bytes(path, 64 << 20)?;
    serde_json::from_slice(&content).map_err(|e| Error::malformed(path, format!("is not JSON: {e}")))
}
