//! Content ids: what an adapter binds to, so that it is never applied to another base.
//!
//! A *source id* names an uncompressed model, a *compressed id* a compressed one; both are the same hash over the
//! tensors (name, type, shape, bytes; sorted by name) and over the configuration fields that change the result, in a
//! canonical form. How a folder is cut into files does not matter. Invariant: the recipe of the hash is fixed for the
//! prefix `VERSION`; ids are stored in adapters.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde_json::Value;

use super::canonical;
use super::folder::ModelFolder;
use super::{cache, shards::Shards};
use crate::error::{Error, Result};

/// Enters the hash first.
const VERSION: &str = "calora id 1";
/// In the metadata of a weights file that calora compressed: the ids and what they were computed with.
const SOURCE_KEY: &str = "calora.source_id";
const COMPRESSED_KEY: &str = "calora.compressed_id";
const CONFIG_KEY: &str = "calora.config_id";

/// The ids of a base model, each `blake3:` and 64 hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseIds {
    /// Of the uncompressed model: known for uncompressed folders and for what calora compressed.
    pub source: Option<String>,
    /// Of this compressed model; none where the folder is not compressed.
    pub compressed: Option<String>,
}

/// Bytes hashed so far and in all; called from several threads.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

impl ModelFolder {
    /// The folder's ids: as recorded where calora wrote it, from the cache beside it, or computed (and then cached).
    pub fn ids(&self) -> Result<BaseIds> {
        self.ids_with(&|_, _| ())
    }

    /// [`Self::ids`] with progress, as gigabytes may have to be read.
    pub fn ids_with(&self, progress: Progress<'_>) -> Result<BaseIds> {
        let config = config_id(self.config());
        if let Some(recorded) = self.recorded_ids(&config) {
            return Ok(recorded);
        }
        let key = cache::Key::new(self, &config);
        let id = match key.as_ref().and_then(|key| key.read()) {
            Some(id) => id,
            None => {
                let id = self.computed_id(progress)?;
                if let Some(key) = key {
                    key.write(&id);
                }
                id
            }
        };
        Ok(match self.quantization() {
            Some(_) => BaseIds { source: None, compressed: Some(id) },
            None => BaseIds { source: Some(id), compressed: None },
        })
    }

    /// The id of what the files hold now, whatever was recorded or cached: the compressed id of a compressed folder,
    /// the source id of another.
    pub fn computed_id(&self, progress: Progress<'_>) -> Result<String> {
        let digests = tensor_digests(self.tensors(), progress)?;
        Ok(id(&config_id(self.config()), &digests))
    }

    /// What calora wrote into the weights file. Tools that change a model drop that metadata; a configuration that was
    /// edited since shows in its own id.
    fn recorded_ids(&self, config: &str) -> Option<BaseIds> {
        self.quantization()?;
        let [file] = self.tensors().files() else { return None };
        let metadata = file.metadata();
        if metadata.get(CONFIG_KEY)? != config {
            return None;
        }
        let get = |key: &str| metadata.get(key).filter(|id| is_id(id)).cloned();
        Some(BaseIds { source: get(SOURCE_KEY), compressed: Some(get(COMPRESSED_KEY)?) })
    }
}

/// The metadata entries by which a compressed file records its ids; all values have the length of an id.
pub fn metadata(source: &str, compressed: &str, config: &str) -> [(&'static str, String); 3] {
    [
        (SOURCE_KEY, source.to_owned()),
        (COMPRESSED_KEY, compressed.to_owned()),
        (CONFIG_KEY, config.to_owned()),
    ]
}

/// Whether a text has the form of an id.
pub fn is_id(text: &str) -> bool {
    let digits = text.strip_prefix("blake3:");
    digits
        .is_some_and(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

/// The id of the configuration fields that change the result.
pub fn config_id(config: &Value) -> String {
    spell(&blake3::hash(canonical::canonical(config).to_string().as_bytes()))
}

/// One tensor's share of an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TensorDigest {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: [u8; 32],
}

/// Hashes a tensor piece by piece.
#[derive(Clone, Debug)]
pub struct TensorHasher {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    hash: blake3::Hasher,
}

impl TensorHasher {
    /// Of a tensor with this name, type (in the file's spelling, `F32`) and shape.
    pub fn new(name: &str, dtype: &str, shape: &[usize]) -> Self {
        Self { name: name.into(), dtype: dtype.into(), shape: shape.into(), hash: blake3::Hasher::new() }
    }

    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
    }

    /// After the last byte.
    pub fn finish(self) -> TensorDigest {
        let bytes = *self.hash.finalize().as_bytes();
        TensorDigest { name: self.name, dtype: self.dtype, shape: self.shape, bytes }
    }
}

/// The id of tensors under a configuration.
pub fn id(config: &str, tensors: &[TensorDigest]) -> String {
    let mut sorted: Vec<&TensorDigest> = tensors.iter().collect();
    sorted.sort();
    let mut hash = blake3::Hasher::new();
    // Every field is preceded by its length: no two lists read alike.
    let mut field = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(VERSION.as_bytes());
    field(config.as_bytes());
    for tensor in sorted {
        field(tensor.name.as_bytes());
        field(tensor.dtype.as_bytes());
        let shape: Vec<u8> = tensor.shape.iter().flat_map(|d| (*d as u64).to_le_bytes()).collect();
        field(&shape);
        field(&tensor.bytes);
    }
    spell(&hash.finalize())
}

fn spell(hash: &blake3::Hash) -> String {
    format!("blake3:{}", hash.to_hex())
}

/// Hashes every tensor, several at a time.
fn tensor_digests(tensors: &Shards, progress: Progress<'_>) -> Result<Vec<TensorDigest>> {
    let names: Vec<&str> = tensors.names().collect();
    let sizes = names.iter().filter_map(|name| tensors.raw(name));
    let total: u64 = sizes.map(|(_, _, bytes)| bytes.len() as u64).sum();
    let done = AtomicU64::new(0);
    names
        .par_iter()
        .map(|name| {
            let Some((dtype, shape, bytes)) = tensors.raw(name) else { return Err(tensors.missing(name)) };
            let mut hash = TensorHasher::new(name, dtype, shape);
            for chunk in bytes.chunks(8 << 20) {
                hash.update(chunk);
                let so_far = done.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
                progress(so_far, total);
            }
            Ok::<_, Error>(hash.finish())
        })
        .collect()
}
