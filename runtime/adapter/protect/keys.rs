//! Keys of adapters: a secret one that opens encrypted files, and the two halves of a signing key.
//!
//! Invariant: no secret is ever shown: `Debug` hides it, no error contains it, and its memory is overwritten when it is
//! dropped.

use std::fmt;
use std::str::FromStr;

use zeroize::{Zeroize, Zeroizing};

use crate::error::{Error, Result};

/// Bytes of each kind of key.
pub const KEY_BYTES: usize = 32;

/// Opens and encrypts adapters. The app keeps it; calora only uses it.
#[derive(Clone)]
pub struct SecretKey(
    /// On the heap, so that moving the key leaves no copy on the stack.
    Box<[u8; KEY_BYTES]>,
);

/// Signs adapters; its public half is what apps trust.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

/// Whose signature an adapter carries. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; KEY_BYTES]);

impl SecretKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> Result<Self> {
        let mut key = Self(Box::new([0; KEY_BYTES]));
        fill_random(&mut key.0[..])?;
        Ok(key)
    }

    /// A key that the app kept: exactly 32 bytes. The caller's copy stays the caller's to overwrite.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        let mut key = Self(Box::new([0; KEY_BYTES]));
        key.0.copy_from_slice(exact("key", bytes)?);
        Ok(key)
    }

    /// The bytes, to be kept in a safe place.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl SigningKey {
    /// A new key from the system's random numbers.
    pub fn generate() -> Result<Self> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        fill_random(&mut seed[..])?;
        Self::from_slice(&seed[..])
    }

    /// A key that was kept: the 32 bytes that [`Self::as_bytes`] gave.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        Ok(Self(ed25519_dalek::SigningKey::from_bytes(exact("signing key", bytes)?)))
    }

    /// The bytes, to be kept in a safe place.
    pub fn as_bytes(&self) -> &[u8; KEY_BYTES] {
        self.0.as_bytes()
    }

    /// The half that apps trust.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// An ed25519 signature.
    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        ed25519_dalek::Signer::sign(&self.0, message).to_bytes()
    }
}

impl PublicKey {
    /// Exactly 32 bytes.
    pub fn from_slice(bytes: &[u8]) -> Result<Self> {
        Ok(Self(*exact("public key", bytes)?))
    }

    /// Whether `signature` is of `message`. Strict: weak keys and second encodings of a signature are refused.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        ed25519_dalek::VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

/// Fills a buffer with random numbers of the system.
pub(super) fn fill_random(buffer: &mut [u8]) -> Result<()> {
    getrandom::fill(buffer)
        .map_err(|e| Error::io("the system's random numbers", std::io::Error::other(e.to_string())))
}

fn exact<'a>(what: &str, bytes: &'a [u8]) -> Result<&'a [u8; KEY_BYTES]> {
    // The value is never part of the error.
    let length = format!("({} bytes)", bytes.len());
    bytes.try_into().map_err(|_| Error::option(what, length, format!("must be {KEY_BYTES} bytes")))
}

/// Lower-case hexadecimal digits.
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Bytes of exactly `2 · N` lower-case hexadecimal digits: one spelling for one value, so that no signed byte is free.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

impl FromStr for PublicKey {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bytes = from_hex(&text.trim().to_ascii_lowercase());
        bytes.map(Self).ok_or_else(|| Error::option("public key", text, "must be 64 hexadecimal digits"))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(hidden)")
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(hidden, public {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let bytes = [0xabu8; KEY_BYTES];
        let (key, signing) = (SecretKey::from_slice(&bytes), SigningKey::from_slice(&bytes));
        let shown = format!("{key:?} {signing:?}");
        assert!(!shown.contains("ab, ab") && !shown.contains("171") && !shown.contains("abab"), "{shown}");
    }

    #[test]
    fn a_key_of_another_length_is_refused_without_being_shown() {
        for length in [0, 16, 31, 33] {
            let error = SecretKey::from_slice(&vec![0xabu8; length]).err().map(|e| e.to_string());
            assert!(error.is_some_and(|e| e.contains("32 bytes") && !e.contains("ab")));
        }
    }

    #[test]
    fn hexadecimal_has_one_spelling() {
        assert_eq!(from_hex::<2>("0aff"), Some([10, 255]));
        assert_eq!(to_hex(&[10, 255]), "0aff");
        for wrong in ["0AFF", "0af", "0aff0", "0afg", "+aff"] {
            assert_eq!(from_hex::<2>(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn two_generated_keys_differ() {
        let two = [SecretKey::generate(), SecretKey::generate()].map(|k| k.map(|k| *k.as_bytes()).ok());
        assert!(two[0].is_some() && two[0] != two[1]);
    }
}
