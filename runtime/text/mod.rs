//! Text to token ids and back: tokenizers, incremental decoding, chat templates.
//!
//! Invariant: no model and no device here; everything is read from the text files of a model folder.

pub mod chat;
mod clock;
pub mod config;
pub mod stream;
pub mod tokenizer;

pub use chat::{ChatTemplate, Message, Role};
pub use config::TokenizerConfig;
pub use stream::TextStream;
pub use tokenizer::Tokenizer;

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::weights::read::read_bytes;

/// The largest text file that is read: tokenizers of 256,000 pieces are about 35 MB.
const LARGEST: u64 = 256 << 20;

/// A file's bytes; `None` where there is no such file, an error for a Git LFS pointer in its place.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    match read_bytes(path, LARGEST) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A JSON object from a file; `None` where there is no such file.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| Error::malformed(path, e))?;
    match value {
        Value::Object(_) => Ok(Some(value)),
        _ => Err(Error::malformed(path, "expected a JSON object")),
    }
}

/// The message of another library's error on one line.
fn one_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
