//! A mapped file, and reading it so that nobody who changes the file can end the process.
//!
//! Touching a mapped page whose file was truncated is a bus error. [`Mapped::visit`] lets the system copy instead of
//! touching: a page that is gone is then an error of the call. [`Mapped::copy`] reads the file itself where its path still
//! leads to it. Invariant: what either hands out is what was opened, or an error; no file handle is kept between calls.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::private::PrivateBytes;
use super::stamp::Stamp;
use crate::error::{Error, Result};

/// Bytes copied at once: every system's pipe holds so many, so that writing them never waits for the reader.
const CHUNK: usize = 4096;

/// A file mapped for reading; the handle is closed, the file stays readable even after it is replaced.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: memmap2::Mmap,
    path: PathBuf,
    stamp: Stamp,
}

impl Mapped {
    /// Maps a regular file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Asked before opening: opening a named pipe would wait for a writer.
        let info = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if !info.is_file() {
            return Err(Error::malformed(path, "is not a regular file"));
        }
        if info.len() == 0 {
            return Err(Error::malformed(path, "is empty"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let stamp = Stamp::of(&file.metadata().map_err(|e| Error::io(path, e))?);
        // SAFETY: the map is read-only and private to this process; its bytes are only ever read as plain numbers, for
        // which every bit pattern is valid. Whoever changes a model file in place while it is mapped gets other numbers,
        // and whoever truncates it a bus error; that is the price of not copying gigabytes (`WeightAccess::Copied` pays
        // the other one), and every writer of ours replaces files by renaming. Adapters are read through `visit`.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Self { map, path: path.to_owned(), stamp })
    }

    /// The mapped bytes, as they are touched by what computes on the map.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Shows a copy of the bytes `range` piece by piece until `see` has enough; [`Error::FileChanged`] where the file
    /// was truncated or written to since it was opened. A file that was replaced by renaming is read as it was.
    pub(super) fn visit(&self, range: Range<usize>, mut see: impl FnMut(&[u8]) -> bool) -> Result<()> {
        let changed = || Error::FileChanged { path: self.path.clone() };
        let (mut reader, mut writer) = std::io::pipe().map_err(|e| Error::io(&self.path, e))?;
        let mut chunk = [0; CHUNK];
        let mut rest = self.map.get(range).ok_or_else(changed)?;
        while !rest.is_empty() {
            // A page that is gone makes this fail, or write less and fail the next time.
            let written = writer.write(&rest[..rest.len().min(CHUNK)]).map_err(|_| changed())?;
            let chunk = &mut chunk[..written];
            reader.read_exact(chunk).map_err(|e| Error::io(&self.path, e))?;
            rest = &rest[written..];
            if written == 0 || !see(chunk) {
                break;
            }
        }
        // Asked last: a change during the copy shows, too. Another file of this name says nothing of the mapped one.
        match Stamp::at(&self.path) {
            Ok(now) if now.same_file(&self.stamp) && now != self.stamp => Err(changed()),
            _ => Ok(()),
        }
    }

    /// A copy of the bytes `range`.
    pub(super) fn copy(&self, range: Range<usize>) -> Result<PrivateBytes> {
        let mut copy = PrivateBytes::plain(&self.path, range.len())?;
        if !self.is_read_again(range.clone(), &mut copy) {
            // A file that changed while it was read left something.
            copy.clear();
            self.visit(range, |chunk| {
                copy.append(chunk);
                true
            })?;
        }
        Ok(copy)
    }

    /// Gives the pages of the bytes `range` back to the system, which keeps what it likes of the file in its own cache and
    /// reads them again where they are touched; how many bytes that are. Elsewhere than on Unix the system does so alone.
    pub(super) fn release(&self, range: Range<usize>) -> u64 {
        #[cfg(unix)]
        {
            let (start, len) = (range.start, range.len());
            // SAFETY: a shared, read-only map of a file that is never written through it: a page that was given back is the
            // same bytes of the same file again, also for whoever borrows them meanwhile.
            let done =
                unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
            match done {
                Ok(()) => len as u64,
                Err(e) => {
                    log::debug!("{}: pages stay: {e}", self.path.display());
                    0
                }
            }
        }
        #[cfg(not(unix))]
        {
            let _ = range;
            0
        }
    }

    /// Reads bytes from the file by its path: one copy where a pipe takes two. Whether they are those of the map: a path
    /// that leads elsewhere, and a file that was or is being changed, is left to the map to judge.
    #[cfg(unix)]
    fn is_read_again(&self, range: Range<usize>, copy: &mut PrivateBytes) -> bool {
        // Asked before opening: opening a named pipe would wait for a writer.
        if !Stamp::at(&self.path).is_ok_and(|now| now == self.stamp) {
            return false;
        }
        let Ok(file) = File::open(&self.path) else { return false };
        // Of the opened file, so that it does not matter what the path leads to by now; twice, so that a change shows.
        let unchanged = || file.metadata().is_ok_and(|info| Stamp::of(&info) == self.stamp);
        unchanged() && copy.read(&file, range.start as u64, range.len()) && unchanged()
    }

    #[cfg(not(unix))]
    fn is_read_again(&self, _: Range<usize>, _: &mut PrivateBytes) -> bool {
        false
    }

    /// Asks the system to read the bytes `range` soon; returns at once. A hint: that it fails changes nothing.
    pub(super) fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Err(e) = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len()) {
            log::debug!("{}: no prefetch: {e}", self.path.display());
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}
