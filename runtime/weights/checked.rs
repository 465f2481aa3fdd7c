//! Files of caches: 8 bytes of magic, the 32-byte blake3 of the content, the content.
//!
//! Invariant: whatever is wrong with such a file costs its content and nothing else.

use std::fs;
use std::path::Path;

use super::write_atomically;
use crate::error::{Error, Result};

/// What a kind of file begins with.
pub(crate) type Magic = [u8; 8];

/// Magic and checksum.
const HEAD: usize = 8 + blake3::OUT_LEN;

/// The content of a sound file of at most `most` bytes of it. A damaged file is removed, or it would stand in the place of
/// a sound one.
pub(crate) fn read_checked(path: &Path, magic: &Magic, most: u64) -> Option<Vec<u8>> {
    let size = fs::metadata(path).ok()?.len();
    let fits = size <= most.saturating_add(HEAD as u64);
    let sound = |file: &Vec<u8>| {
        file.len() >= HEAD
            && file.starts_with(magic)
            && blake3::hash(&file[HEAD..]).as_bytes() == &file[magic.len()..HEAD]
    };
    match fits.then(|| fs::read(path).ok()).flatten().filter(sound) {
        Some(mut file) => Some(file.split_off(HEAD)),
        None => {
            log::warn!("{}: not a sound file of a cache; it is made again", path.display());
            let _ = fs::remove_file(path);
            None
        }
    }
}

/// Writes such a file, and its folder where there is none.
pub(crate) fn write_checked(path: &Path, magic: &Magic, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    write_atomically(path, &[magic.as_slice(), blake3::hash(content).as_bytes(), content].concat())
}
