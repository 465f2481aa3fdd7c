//! What tells whether a file is still the one that was opened: which file it is, its length, its time of change.
//!
//! Invariant: asking costs one call to the system and reads nothing.

use std::fs::Metadata;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// One state of one file. Equal stamps: the same file with the same content, as far as the system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Device and inode, where the system has them.
    file: Option<(u64, u64)>,
    len: u64,
    /// Nanoseconds since 1970.
    modified: Option<u128>,
}

impl Stamp {
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(path)?))
    }

    pub(crate) fn of(info: &Metadata) -> Self {
        let modified = info.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        Self { file: file(info), len: info.len(), modified: modified.map(|t| t.as_nanos()) }
    }

    /// Whether it is the same file, whatever its content is now. Where the system does not tell, a path is a file.
    pub(crate) fn same_file(&self, other: &Self) -> bool {
        self.file == other.file
    }

    /// As bytes, to be hashed.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        format!("{self:?}").into_bytes()
    }
}

#[cfg(unix)]
#[allow(clippy::unnecessary_wraps)] // the other systems have none
fn file(info: &Metadata) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    Some((info.dev(), info.ino()))
}

#[cfg(not(unix))]
fn file(_: &Metadata) -> Option<(u64, u64)> {
    None
}
