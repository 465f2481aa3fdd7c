//! Writing a file so that a reader, or a crash, sees the old content or the new one, never half.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Writes beside the place, flushes to the disk, renames.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().ok_or_else(|| Error::malformed(path, "names no file"))?;
    let mut temporary = name.to_owned();
    // Also of its own among the threads of this process.
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    temporary.push(format!(".{}-{unique}.partial", std::process::id()));
    let temporary = path.with_file_name(temporary);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&temporary, path)).map_err(|e| {
        // The half-written file helps nobody; that it could not be removed adds nothing to the first error.
        let _ = fs::remove_file(&temporary);
        Error::io(path, e)
    })
}
