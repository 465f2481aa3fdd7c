//! A task file with other metadata and the same tensors: what signing and storing a canary change.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The file with metadata keys set, or removed where the value is `None`; not one byte of a tensor changes. `file` is a
/// task file that was opened before; `path` names it in errors.
pub(super) fn with_metadata(path: &Path, file: &[u8], entries: &[(&str, Option<String>)]) -> Result<Vec<u8>> {
    let broken = |reason: &str| Error::malformed(path, reason);
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(|| broken("has no header"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    let (header, data) = rest.split_at_checked(length).ok_or_else(|| broken("its header is cut off"))?;
    let mut header: Map<String, Value> =
        serde_json::from_slice(header).map_err(|e| Error::malformed(path, e))?;
    let metadata = header.entry("__metadata__").or_insert_with(|| Map::new().into());
    let metadata = metadata.as_object_mut().ok_or_else(|| broken("its metadata is no object"))?;
    for (key, value) in entries {
        match value {
            Some(value) => drop(metadata.insert((*key).to_owned(), value.clone().into())),
            None => drop(metadata.remove(*key)),
        }
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    // The format's writers align the tensors to eight bytes with spaces.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header, data].concat())
}
