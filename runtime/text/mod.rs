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

/// A file's bytes; `None` where there is no such file, an error for a Git LFS pointer in its place.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
    };
    if bytes.starts_with(b"version https://git-lfs.") {
        let text = String::from_utf8_lossy(&bytes);
        let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse().ok());
        return Err(Error::LfsPointer { path: path.to_owned(), size: size.unwrap_or(0) });
    }
    Ok(Some(bytes))
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
