//! Writing a file so that a reader, or a crash, sees the old content or the new one, never half.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// A file beside its place until it is complete; dropped before that, it is removed.
pub(crate) struct Staged {
    temporary: PathBuf,
    file: File,
}

impl Staged {
    /// Creates `{path}.{unique}.partial`.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let mut name = path.file_name().ok_or_else(|| Error::malformed(path, "names no file"))?.to_owned();
        // Also of its own among the threads of this process.
        let unique = COUNT.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{unique}.partial", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(|e| Error::io(path, e))?;
        Ok(Self { temporary, file })
    }

    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Flushes to the disk and renames.
    pub(crate) fn commit(self, path: &Path) -> Result<()> {
        let done = self.file.sync_all().and_then(|()| fs::rename(&self.temporary, path));
        done.map_err(|e| Error::io(path, e))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // The half-written file helps nobody; after the renaming there is none of this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes beside the place, flushes to the disk, renames.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut staged = Staged::new(path)?;
    staged.file().write_all(bytes).map_err(|e| Error::io(path, e))?;
    staged.commit(path)
}
