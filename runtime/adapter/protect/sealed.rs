//! A task file encrypted at rest.
//!
//! ```text
//!  0  "CALORAEN"                              8 bytes
//!  8  version, 1                              u32, little-endian as all numbers
//! 12  bytes of a part, 65536                  u32
//! 16  bytes of the task file, at least 1      u64
//! 24  salt, random for every file            32 bytes
//! 56  proof that key and header belong       32 bytes
//! 88  parts: up to 65536 bytes, encrypted, and a tag of 16 each; the last may be shorter
//! ```
//!
//! BLAKE3 in its key derivation mode makes, of the app's key and the 56 bytes before the proof, the proof and a key for
//! this file alone. Each part is encrypted with that key by ChaCha20-Poly1305; its nonce is the part's number and whether
//! it is the last (the STREAM construction). So a changed header, a wrong key, a changed, moved, lost or added part and
//! a part of another file are each found out, and no key ever meets one nonce twice.
//!
//! Nothing is readable without the key, not even the task's name: that somebody has an adapter called `my-diagnosis` is
//! a personal fact, too. Its size is not hidden.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::{AeadInOut, ChaCha20Poly1305, Key, KeyInit, Nonce, Tag};
use zeroize::{Zeroize, Zeroizing};

use super::keys::{SecretKey, fill_random};
use crate::error::{Error, Result};
use crate::weights::PrivateBytes;

/// What every encrypted file begins with.
const MAGIC: &[u8; 8] = b"CALORAEN";
/// The version written and read.
const VERSION: u32 = 1;
/// Bytes of a part: few enough to find damage early, many enough that tags cost nothing.
const PART: usize = 65536;
/// Bytes of a part's tag.
const TAG: usize = 16;
/// Bytes before the proof.
const FIELDS: usize = 56;
/// Bytes before the first part.
const HEADER: usize = FIELDS + 32;
/// Separates these keys from every other use of BLAKE3.
const CONTEXT: &str = "calora 2026-11 encrypted task-adapter v1";

/// Whether a file begins as an encrypted one does. What cannot be read is not: opening it will say why.
pub fn is_encrypted(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    // Asked before opening: opening a named pipe would wait for a writer.
    path.is_file() && File::open(path).is_ok_and(|mut f| f.read_exact(&mut magic).is_ok()) && magic == *MAGIC
}

/// Encrypts a task file; each call gives other bytes.
pub(super) fn seal(task_file: &[u8], key: &SecretKey) -> Result<Vec<u8>> {
    let parts = task_file.len().div_ceil(PART);
    let mut out = Vec::with_capacity(HEADER + task_file.len() + parts * TAG);
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((PART as u32).to_le_bytes());
    out.extend((task_file.len() as u64).to_le_bytes());
    let mut salt = [0; FIELDS - 24];
    fill_random(&mut salt)?;
    out.extend(salt);
    let (cipher, proof) = derive(key, &out);
    out.extend(proof.as_bytes());
    for (number, part) in task_file.chunks(PART).enumerate() {
        let start = out.len();
        out.extend(part);
        let tag = cipher
            .encrypt_inout_detached(&nonce(number, parts), &[], InOutBuf::from(&mut out[start..]))
            .map_err(|_| Error::option("task file", task_file.len(), "is too large to be encrypted"))?;
        out.extend(&tag[..]);
    }
    Ok(out)
}

/// Decrypts a file into memory that is overwritten when it is dropped; at most as many bytes as the file has.
pub(crate) fn open(path: &Path, key: Option<&SecretKey>) -> Result<PrivateBytes> {
    let io = |e| Error::io(path, e);
    let locked = |reason: &str| Error::Locked { path: path.to_owned(), reason: reason.into() };
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();
    let mut header = [0; HEADER];
    if file_len < header.len() as u64 {
        let reason = format!("is {file_len} bytes long, shorter than the header of an encrypted adapter");
        return Err(Error::malformed(path, reason));
    }
    file.read_exact(&mut header).map_err(io)?;
    let len = length(path, &header, file_len)?;
    let key = key.ok_or_else(|| locked("open it with the key that it was encrypted with"))?;
    let (cipher, proof) = derive(key, &header[..FIELDS]);
    // Hashes are compared in constant time.
    if proof != header[FIELDS..] {
        return Err(locked("the key is another one than it was encrypted with, or its header was changed"));
    }
    let mut plain = PrivateBytes::zeroed(path, len)?;
    let parts = len.div_ceil(PART);
    for (number, part) in plain.bytes_mut().chunks_mut(PART).enumerate() {
        let mut tag = Tag::default();
        file.read_exact(part).and_then(|()| file.read_exact(&mut tag)).map_err(io)?;
        if cipher.decrypt_inout_detached(&nonce(number, parts), &[], InOutBuf::from(part), &tag).is_err() {
            let reason = format!("part {} of {parts} was changed after it was encrypted", number + 1);
            return Err(Error::malformed(path, reason));
        }
    }
    Ok(plain)
}

/// Bytes of the task file, checked against the file's own length before anything is allocated.
fn length(path: &Path, header: &[u8; HEADER], file_len: u64) -> Result<usize> {
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if number(8) != VERSION {
        let feature = format!("an encrypted adapter of version {}", number(8));
        let help = "this calora reads version 1; update calora".into();
        return Err(Error::UnsupportedAdapter { path: path.to_owned(), feature, help });
    }
    if number(12) as usize != PART {
        let reason = format!("its parts have {} bytes, those of version 1 have {PART}", number(12));
        return Err(Error::malformed(path, reason));
    }
    let len = u64::from(number(16)) | u64::from(number(20)) << 32;
    let tags = len.div_ceil(PART as u64).checked_mul(TAG as u64);
    let expected = tags.and_then(|tags| len.checked_add(tags)?.checked_add(HEADER as u64));
    match usize::try_from(len) {
        Ok(len) if len > 0 && expected == Some(file_len) => Ok(len),
        _ => {
            let reason =
                format!("announces {len} bytes, which {file_len} encrypted ones cannot be; is it truncated?");
            Err(Error::malformed(path, reason))
        }
    }
}

/// The cipher of one file, and the proof for its header.
fn derive(key: &SecretKey, fields: &[u8]) -> (ChaCha20Poly1305, blake3::Hash) {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(key.as_bytes());
    hasher.update(fields);
    let mut stream = hasher.finalize_xof();
    let (mut own, mut proof) = (Zeroizing::new([0; 32]), [0; 32]);
    stream.fill(&mut own[..]);
    stream.fill(&mut proof);
    hasher.zeroize();
    stream.zeroize();
    let mut own_key = Key::from(*own);
    let cipher = ChaCha20Poly1305::new(&own_key);
    own_key.as_mut_slice().zeroize();
    (cipher, proof.into())
}

/// The part's number, and 1 in the last byte of the last part's.
fn nonce(number: usize, parts: usize) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[..8].copy_from_slice(&(number as u64).to_le_bytes());
    nonce[11] = u8::from(number + 1 == parts);
    nonce
}
