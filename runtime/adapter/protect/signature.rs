//! Signatures of task files: who made this, and that not one byte of it changed since.
//!
//! Two metadata keys carry it: `calora.signer`, the ed25519 public key, and `calora.signature`, both in lower-case
//! hexadecimal. What is signed is a BLAKE3 hash, in a context of its own, of *all bytes of the file* with the digits of
//! the signature replaced by zeros. So there is no canonical form to get wrong: header, order, padding, tensors and the
//! signer's key are covered as they stand, and a signature fits one file only.

use std::ops::Range;
use std::path::Path;

use super::keys::{PublicKey, SigningKey, from_hex, to_hex};
use super::metadata::with_metadata;
use crate::error::{Error, Result};
use crate::weights::SafetensorsFile;

/// Who signed.
pub(super) const SIGNER: &str = "calora.signer";
/// The signature.
pub(super) const SIGNATURE: &str = "calora.signature";
/// Hexadecimal digits of a signature.
const DIGITS: usize = 128;
/// Separates these hashes from every other use of BLAKE3 and of the key.
const CONTEXT: &str = "calora 2026-11 task-adapter signature v1";

/// A task file with a signature in its metadata; an older one is replaced. `path` names it in errors.
pub(super) fn sign(path: &Path, file: &[u8], key: &SigningKey) -> Result<Vec<u8>> {
    let blank = "0".repeat(DIGITS);
    let entries = [(SIGNER, Some(key.public().to_string())), (SIGNATURE, Some(blank.clone()))];
    let mut signed = with_metadata(path, file, &entries)?;
    let Some(place) = place(&signed, &blank) else {
        return Err(Error::malformed(path, "its header has no place for a signature"));
    };
    let signature = key.sign(&digest(&signed, &place));
    signed[place].copy_from_slice(to_hex(&signature).as_bytes());
    Ok(signed)
}

/// Who signed a file, after reading all of it; `None` where nobody did. A signature that does not fit is an error.
pub(super) fn verified_signer(file: &SafetensorsFile) -> Result<Option<PublicKey>> {
    let untrusted = |reason: &str| Error::Untrusted { path: file.path().to_owned(), reason: reason.into() };
    let (signer, text) = match (file.metadata().get(SIGNER), file.metadata().get(SIGNATURE)) {
        (None, None) => return Ok(None),
        (Some(signer), Some(signature)) => (signer, signature),
        _ => {
            return Err(untrusted(
                "it has half a signature: calora.signer and calora.signature belong together",
            ));
        }
    };
    let (Some(signer), Some(signature)) = (from_hex(signer).map(PublicKey), from_hex::<64>(text)) else {
        return Err(untrusted("its signature is no ed25519 signature in lower-case hexadecimal digits"));
    };
    let place = place(file.bytes(), text).ok_or_else(|| untrusted("its signature does not stand alone"))?;
    if !signer.verifies(&digest(file.bytes(), &place), &signature) {
        return Err(untrusted("its content is not what was signed; take the file from its source again"));
    }
    Ok(Some(signer))
}

/// The signer, who must be among the trusted.
pub(crate) fn trusted_signer(file: &SafetensorsFile, trusted: &[PublicKey]) -> Result<PublicKey> {
    let reason = match verified_signer(file)? {
        Some(signer) if trusted.contains(&signer) => return Ok(signer),
        Some(signer) => format!("it is signed by {signer}, who is not among the trusted signers"),
        None => "it is not signed; `calora protect --sign` signs a task file".to_owned(),
    };
    Err(Error::Untrusted { path: file.path().to_owned(), reason })
}

/// Where the header spells the signature's digits. A quote inside a JSON string is escaped, so that this is found as
/// metadata or not at all.
fn place(file: &[u8], digits: &str) -> Option<Range<usize>> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let header = rest.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let pattern = format!("\"{SIGNATURE}\":\"{digits}\"");
    let mut found = header.windows(pattern.len()).enumerate().filter(|(_, w)| *w == pattern.as_bytes());
    let (at, _) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    let end = length.len() + at + pattern.len() - 1;
    Some(end - digits.len()..end)
}

/// The hash of a file whose signature counts as zeros.
fn digest(file: &[u8], signature: &Range<usize>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(&file[..signature.start]);
    hasher.update(&[b'0'; DIGITS]);
    hasher.update(&file[signature.end..]);
    *hasher.finalize().as_bytes()
}
