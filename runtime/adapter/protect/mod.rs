//! What makes a task file more than plain bytes: a signature, encryption at rest, and the keys of both.
//!
//! Both are optional and independent. A signature lies in the metadata of the task file (`signature.rs`); an encrypted
//! file holds a whole task file, signed or not (`sealed.rs`).

pub mod keys;
mod metadata;
pub(crate) mod sealed;
pub(crate) mod signature;

use std::path::Path;
use std::sync::Arc;

pub use keys::{PublicKey, SecretKey, SigningKey};
pub use sealed::is_encrypted;

use super::canary::Canary;
use crate::error::{Error, Result};
use crate::weights::{PrivateBytes, SafetensorsFile};
use zeroize::Zeroizing;

/// How an adapter is opened.
#[derive(Clone, Debug, Default)]
pub struct AdapterOptions {
    /// Opens an encrypted adapter; a plain one does not need it and is opened all the same.
    pub key: Option<SecretKey>,
    /// With a list, only an adapter that one of these signed is opened: all of its file is read once. An empty list trusts
    /// nobody. `None` asks for no signature.
    pub trusted_signers: Option<Vec<PublicKey>>,
    /// Runs the adapter's probe on the engine's device: two passes of a few tokens. An adapter that does nothing, or
    /// something else than it was made for, is refused.
    pub canary: bool,
}

/// What is done to a task file before it is kept or sent.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    /// Stored as the adapter's probe.
    pub canary: Option<Canary>,
    /// Signs; an older signature is replaced.
    pub sign: Option<SigningKey>,
    /// Encrypts, last.
    pub encrypt: Option<SecretKey>,
}

/// The bytes of a task file with a canary, signed, encrypted, as asked. `path` names it in errors; nothing is written.
///
/// A canary changes what an older signature covers: without a new one that is an error.
pub fn protect(path: &Path, task_file: &[u8], protection: &Protection) -> Result<Vec<u8>> {
    let mut bytes = Zeroizing::new(task_file.to_vec());
    if let Some(canary) = &protection.canary {
        let signed = open_bytes(path, task_file)?.metadata().contains_key(signature::SIGNATURE);
        if signed && protection.sign.is_none() {
            let reason = "a canary would break the file's signature; sign it again as well";
            return Err(Error::option("canary", path.display(), reason));
        }
        bytes =
            metadata::with_metadata(path, &bytes, &[(super::canary::KEY, Some(canary.to_json()))])?.into();
    }
    if let Some(key) = &protection.sign {
        bytes = signature::sign(path, &bytes, key)?.into();
    }
    match &protection.encrypt {
        Some(key) => sealed::seal(&bytes, key),
        None => Ok(std::mem::take(&mut *bytes)),
    }
}

/// The bytes of the task file at `path`, decrypted where it is encrypted, in memory that is overwritten on drop.
pub fn read_task_file(path: &Path, key: Option<&SecretKey>) -> Result<Arc<PrivateBytes>> {
    if is_encrypted(path) {
        return Ok(Arc::new(sealed::open(path, key)?));
    }
    let file = SafetensorsFile::open(path)?;
    Ok(Arc::new(PrivateBytes::copy(path, file.bytes())?))
}

/// Who signed the task file at `path`, after reading all of it; `None` where nobody did. A signature that does not fit
/// the file is [`Error::Untrusted`].
pub fn signer(path: &Path, key: Option<&SecretKey>) -> Result<Option<PublicKey>> {
    signature::verified_signer(&SafetensorsFile::from_private(path, read_task_file(path, key)?)?)
}

/// A task file in memory.
pub(super) fn open_bytes(path: &Path, task_file: &[u8]) -> Result<SafetensorsFile> {
    SafetensorsFile::from_private(path, Arc::new(PrivateBytes::copy(path, task_file)?))
}
