//! Key files of the command line: one line that says what it is, readable by their owner only.
//!
//! Apps keep their keys in the system's key store; these files are for workstations.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use calora::adapter::protect::keys::{from_hex, to_hex};
use calora::adapter::{PublicKey, SecretKey, SigningKey};
use zeroize::Zeroizing;

const ENCRYPTION: &str = "calora-encryption-key";
const SIGNING: &str = "calora-signing-key";
const PUBLIC: &str = "calora-public-key";

/// Writes a new encryption key.
pub fn write_encryption_key(path: &Path, key: &SecretKey) -> Result<()> {
    write(path, ENCRYPTION, key.as_bytes(), true)
}

/// Writes a new signing key, and its public half beside it as `NAME.pub`.
pub fn write_signing_key(path: &Path, key: &SigningKey) -> Result<()> {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    write(path, SIGNING, key.as_bytes(), true)?;
    write(Path::new(&public), PUBLIC, &key.public().0, false)
}

/// Reads an encryption key.
pub fn read_encryption_key(path: &Path) -> Result<SecretKey> {
    Ok(SecretKey::from_slice(&read(path, ENCRYPTION)?[..])?)
}

/// Reads a signing key.
pub fn read_signing_key(path: &Path) -> Result<SigningKey> {
    Ok(SigningKey::from_slice(&read(path, SIGNING)?[..])?)
}

/// A public key: 64 hexadecimal digits, or a file that `calora keygen` wrote.
pub fn public_key(text: &str) -> Result<PublicKey> {
    if Path::new(text).exists() {
        return Ok(PublicKey(*read(Path::new(text), PUBLIC)?));
    }
    Ok(text.parse()?)
}

fn write(path: &Path, kind: &str, key: &[u8; 32], secret: bool) -> Result<()> {
    let line = Zeroizing::new(format!("{kind}: {}\n", &*Zeroizing::new(to_hex(key))));
    let mut options = std::fs::OpenOptions::new();
    // A key that is written over is lost, and with it whatever it encrypted.
    options.write(true).create_new(true);
    #[cfg(unix)]
    if secret {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = secret;
    let written = options.open(path).and_then(|mut file| {
        file.write_all(line.as_bytes())?;
        file.sync_all()
    });
    written.with_context(|| format!("{}: cannot be written", path.display()))
}

fn read(path: &Path, kind: &str) -> Result<Zeroizing<[u8; 32]>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: no key", path.display()))?;
    let text = Zeroizing::new(text);
    let key = text.trim().strip_prefix(kind).and_then(|rest| from_hex(rest.strip_prefix(": ")?));
    match key {
        Some(key) => Ok(Zeroizing::new(key)),
        None => bail!("{}: is no {kind}; `calora keygen` writes one", path.display()),
    }
}
