//! The header of a safetensors file, checked before the `safetensors` crate sees it.
//!
//! That crate's errors rarely say which tensor is wrong, it keeps the last of two tensors with one name, and sums of
//! hostile offsets can overflow in it; so this owns the checks and the crate confirms the result.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};

use crate::error::{Error, Result};

/// The limit of the format's reference implementation.
const LARGEST_HEADER: u64 = 100_000_000;
/// The header's length stands before it as a little-endian u64.
const LENGTH_BYTES: usize = 8;

/// One tensor as the header describes it; offsets count from the file's start.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The format's spelling: `F32`, `BF16`, ...
    pub(super) dtype: String,
    pub(super) shape: Vec<usize>,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A checked header.
#[derive(Debug)]
pub(super) struct Header {
    /// In the order of the file.
    pub(super) entries: Vec<Entry>,
    pub(super) metadata: HashMap<String, String>,
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The JSON object with names in order, duplicates refused.
#[derive(Default)]
struct RawHeader {
    metadata: HashMap<String, String>,
    entries: Vec<(String, RawEntry)>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<RawHeader, M::Error> {
                let mut header = RawHeader::default();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(M::Error::custom(format!("tensor {name} appears twice")));
                    }
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                    } else {
                        // The position that serde adds means little in a file of one long line; the name helps.
                        let entry =
                            map.next_value().map_err(|e| M::Error::custom(format!("tensor {name}: {e}")))?;
                        header.entries.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Header {
    /// Parses and checks the header of a whole mapped file.
    pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Self> {
        let malformed = |reason: String| Err(Error::malformed(path, reason));
        let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            return malformed(format!("is {} bytes long, too short for a safetensors file", file.len()));
        };
        let length = u64::from_le_bytes(*length);
        if length > LARGEST_HEADER {
            return malformed(format!(
                "announces a header of {length} bytes, at most {LARGEST_HEADER} are allowed"
            ));
        }
        let Some(json) = rest.get(..length as usize) else {
            return malformed(format!(
                "announces a header of {length} bytes, but has only {} after its length; is it truncated?",
                rest.len()
            ));
        };
        let raw: RawHeader = match serde_json::from_slice(json) {
            Ok(raw) => raw,
            Err(e) => return malformed(format!("its header is not that of a safetensors file: {e}")),
        };
        let data_start = LENGTH_BYTES + json.len();
        let header =
            Self { entries: place(path, raw.entries, data_start, file.len())?, metadata: raw.metadata };
        match safetensors::SafeTensors::read_metadata(file) {
            Ok(_) => Ok(header),
            Err(e) => malformed(e.to_string()),
        }
    }
}

/// Orders the tensors by offset and refuses holes, overlaps, wrong sizes and ends beyond the file.
fn place(
    path: &Path,
    mut raw: Vec<(String, RawEntry)>,
    data_start: usize,
    file_len: usize,
) -> Result<Vec<Entry>> {
    raw.sort_by_key(|(_, entry)| entry.data_offsets);
    let available = (file_len - data_start) as u64;
    let mut expected = 0;
    let mut entries = Vec::with_capacity(raw.len());
    for (name, entry) in raw {
        let (start, end) = entry.data_offsets;
        let wrong = |reason: String| Err(Error::tensor(path, &name, reason));
        if start > end {
            return wrong(format!("its bytes end ({end}) before they start ({start})"));
        }
        if end > available {
            return wrong(format!(
                "its bytes {start}..{end} lie outside the file, which has {available}; is it truncated?"
            ));
        }
        if start < expected {
            return wrong(format!(
                "its bytes {start}..{end} overlap the tensor before, which ends at {expected}"
            ));
        }
        if start > expected {
            return wrong(format!("its bytes {start}..{end} leave a hole after {expected}"));
        }
        expected = end;
        let elements = entry.shape.iter().try_fold(1u64, |n, d| n.checked_mul(*d));
        let bits = dtype_bits(&entry.dtype);
        let bytes = elements.zip(bits).and_then(|(n, bits)| n.checked_mul(bits)).map(|bits| bits.div_ceil(8));
        // Types that this list does not know are the safetensors crate's to judge.
        if bits.is_some() && bytes != Some(end - start) {
            return wrong(format!(
                "has {} bytes, but shape {:?} of {} needs {}",
                end - start,
                entry.shape,
                entry.dtype,
                bytes.map_or("more than can be counted".into(), |b| b.to_string())
            ));
        }
        entries.push(Entry {
            name,
            dtype: entry.dtype,
            shape: entry.shape.iter().map(|d| *d as usize).collect(),
            start: data_start + start as usize,
            end: data_start + end as usize,
        });
    }
    if expected != available {
        let reason = format!("has {available} bytes of data, but its tensors cover {expected}");
        return Err(Error::malformed(path, reason));
    }
    Ok(entries)
}

/// Bits of an element.
fn dtype_bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E5M2" | "F8_E4M3" | "F8_E8M0" => 8,
        "I16" | "U16" | "F16" | "BF16" => 16,
        "I32" | "U32" | "F32" => 32,
        "I64" | "U64" | "F64" | "C64" => 64,
        _ => return None,
    })
}
