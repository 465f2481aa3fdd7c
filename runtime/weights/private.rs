//! Bytes of tensors that lie in memory and not in a map: a decrypted file, whose bytes must not stay behind, a checked copy,
//! or generated values. All are overwritten when their last holder goes.
//!
//! Invariant: the buffer never grows, so that no copy of it is left where an allocator moved it from.

use std::path::Path;

use zeroize::Zeroize;

use crate::error::{Error, Result};

/// A buffer of this process, zeroised on drop.
pub struct PrivateBytes {
    /// u64 elements keep the bytes aligned for every element type.
    words: Vec<u64>,
    len: usize,
}

impl PrivateBytes {
    /// `len` zeros for the content of `path`, or the error that there is no memory for them.
    pub(crate) fn zeroed(path: &Path, len: usize) -> Result<Self> {
        let mut words = Vec::new();
        if let Err(e) = words.try_reserve_exact(len.div_ceil(8)) {
            let (what, reason) = (path.display().to_string(), e.to_string());
            return Err(Error::OutOfMemory { what, bytes: len as u64, reason });
        }
        words.resize(len.div_ceil(8), 0);
        Ok(Self { words, len })
    }

    /// A copy of `bytes`, which are the content of `path`.
    pub(crate) fn copy(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut private = Self::zeroed(path, bytes.len())?;
        private.bytes_mut().copy_from_slice(bytes);
        Ok(private)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len]
    }

    fn wipe(&mut self) {
        self.words.as_mut_slice().zeroize();
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.len]
    }
}

impl Drop for PrivateBytes {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl std::fmt::Debug for PrivateBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} private bytes", self.len)
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
