//! Bytes of tensors that lie in memory and not in a map: a decrypted file, whose bytes must not stay behind, generated values,
//! or a checked copy of a file that anybody can read.
//!
//! Invariant: the buffer never grows, so that no copy of it is left where an allocator moved it from; all but copies of plain
//! files are overwritten when their last holder goes.

use std::path::Path;

use zeroize::Zeroize;

use super::room;
use crate::error::{Error, Result};

/// Bytes of the largest element.
const ALIGN: usize = 8;

/// A buffer of this process.
pub struct PrivateBytes {
    /// Some bytes until elements are aligned, then the content.
    buffer: Vec<u8>,
    start: usize,
    /// Whether it is overwritten on drop.
    secret: bool,
}

impl PrivateBytes {
    /// Room for `len` bytes that are the content of `path`, or the error that there is no memory for them.
    fn with_room(path: &Path, len: usize, secret: bool) -> Result<Self> {
        let wanted = len.saturating_add(ALIGN);
        let mut buffer = Vec::<u8>::new();
        // What is secret lies in memory of its own, which is as large as it has to be.
        let reserved = match secret {
            true => buffer.try_reserve_exact(wanted),
            false => room::take(wanted).map(|room| buffer = room),
        };
        if let Err(e) = reserved {
            let (what, reason) = (path.display().to_string(), e.to_string());
            return Err(Error::OutOfMemory { what, bytes: len as u64, reason });
        }
        let start = buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        buffer.resize(start, 0);
        Ok(Self { buffer, start, secret })
    }

    /// `len` zeros for the content of `path`.
    pub(crate) fn zeroed(path: &Path, len: usize) -> Result<Self> {
        let mut private = Self::with_room(path, len, true)?;
        private.buffer.resize(private.start + len, 0);
        Ok(private)
    }

    /// A copy of `bytes`, which are the content of `path`.
    pub(crate) fn copy(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut private = Self::with_room(path, bytes.len(), true)?;
        private.buffer.extend_from_slice(bytes);
        Ok(private)
    }

    /// Room for `len` bytes of a plain file; nothing is in it yet.
    pub(super) fn plain(path: &Path, len: usize) -> Result<Self> {
        Self::with_room(path, len, false)
    }

    /// Appends the `len` bytes of a file from `at` on, or nothing; whether it has so many. Memory is not set to zero before.
    #[cfg(unix)]
    pub(super) fn read(&mut self, mut file: &std::fs::File, at: u64, len: usize) -> bool {
        use std::io::{Read, Seek, SeekFrom};
        let before = self.buffer.len();
        let whole = len <= self.buffer.capacity() - before
            && file.seek(SeekFrom::Start(at)).is_ok()
            && file.take(len as u64).read_to_end(&mut self.buffer).is_ok_and(|read| read == len);
        if !whole {
            self.buffer.truncate(before);
        }
        whole
    }

    /// Appends as much as there is room for.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        let room = self.buffer.capacity() - self.buffer.len();
        self.buffer.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Empty again.
    pub(super) fn clear(&mut self) {
        self.buffer.truncate(self.start);
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn wipe(&mut self) {
        // By words: volatile writes are not joined.
        let (first, words, last) = bytemuck::pod_align_to_mut::<u8, u64>(&mut self.buffer);
        first.zeroize();
        words.zeroize();
        last.zeroize();
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..]
    }
}

impl Drop for PrivateBytes {
    fn drop(&mut self) {
        if self.secret {
            self.wipe();
        }
    }
}

impl std::fmt::Debug for PrivateBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} private bytes", self.bytes().len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_the_bytes() {
        let secret: Vec<u8> = (1..=13).collect();
        let mut private = PrivateBytes::copy(Path::new("f"), &secret).unwrap_or_else(|e| unreachable!("{e}"));
        assert_eq!(private.bytes(), secret);
        private.wipe();
        assert!(private.bytes().iter().all(|b| *b == 0) && private.bytes().len() == secret.len());
    }
}
