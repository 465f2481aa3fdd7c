//! One safetensors file, memory-mapped or decrypted: names, shapes and types from its header, tensors as views of it.
//!
//! Invariant: opening reads the header and no tensor; a damaged file is an error that names the file and the tensor,
//! never a panic.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::header::{Entry, Header};
use super::mapped::Mapped;
use super::private::PrivateBytes;
use super::read::refuse_lfs_pointer;
use super::tensor::{Backing, DType, Tensor};
use crate::error::{Error, Result};

/// A safetensors file; clones share its bytes.
#[derive(Clone)]
pub struct SafetensorsFile {
    path: Arc<PathBuf>,
    backing: Backing,
    entries: Arc<[Entry]>,
    by_name: Arc<HashMap<String, usize>>,
    metadata: Arc<HashMap<String, String>>,
}

impl std::fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} tensors)", self.path.display(), self.entries.len())
    }
}

impl SafetensorsFile {
    /// Maps a file and checks its header: every tensor within the file, none overlapping, no holes, no name twice.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let map = Mapped::open(path)?;
        refuse_lfs_pointer(path, map.bytes())?;
        Self::parse(path, Backing::Mapped(Arc::new(map)))
    }

    /// The same of a file that was decrypted into memory; `path` names it in errors.
    pub(crate) fn from_private(path: &Path, bytes: Arc<PrivateBytes>) -> Result<Self> {
        Self::parse(path, Backing::Private(bytes))
    }

    fn parse(path: &Path, backing: Backing) -> Result<Self> {
        let header = Header::parse(path, backing.bytes())?;
        let by_name = header.entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(Self {
            path: Arc::new(path.to_owned()),
            backing,
            entries: header.entries.into(),
            by_name: Arc::new(by_name),
            metadata: Arc::new(header.metadata),
        })
    }

    /// The same file in memory of this process: whatever happens to the one on the disk, its tensors stay.
    ///
    /// [`Error::FileChanged`] where that happened already.
    pub fn copied(&self) -> Result<Self> {
        let (backing, _) = self.backing.copied(0..self.backing.bytes().len())?;
        Ok(Self { backing, ..self.clone() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All its bytes, header included.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.backing.bytes()
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|e| e.name.as_str())
    }

    /// The header's `__metadata__`.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Whether a tensor of this name is there, of whatever type.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// A tensor; nothing where the file has none of this name *or* it is of a type that calora does not read. Where the
    /// difference matters, ask [`Self::require`].
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let entry = self.entry(name)?;
        Some(self.view(entry, dtype(&entry.dtype)?))
    }

    /// A tensor that must be there, of a type that calora reads.
    pub fn require(&self, name: &str) -> Result<Tensor> {
        let Some(entry) = self.entry(name) else {
            return Err(Error::tensor(self.path(), name, "is missing"));
        };
        match dtype(&entry.dtype) {
            Some(dtype) => Ok(self.view(entry, dtype)),
            None => {
                let reason = format!("is of type {}; F32, F16, BF16, I8, I32 and I64 are read", entry.dtype);
                Err(Error::tensor(self.path(), name, reason))
            }
        }
    }

    /// A tensor's type as the file spells it, its shape and its raw bytes, also where calora does not read the type.
    pub fn raw(&self, name: &str) -> Option<(&str, &[usize], &[u8])> {
        let entry = self.entry(name)?;
        Some((&entry.dtype, &entry.shape, self.bytes().get(entry.start..entry.end)?))
    }

    fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(*self.by_name.get(name)?)
    }

    fn view(&self, entry: &Entry, dtype: DType) -> Tensor {
        Tensor {
            backing: self.backing.clone(),
            range: entry.start..entry.end,
            path: self.path.clone(),
            name: entry.name.as_str().into(),
            dtype,
            shape: entry.shape.clone(),
        }
    }
}

/// The element type of the format's spelling, where it is one that calora reads.
fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "I8" => DType::I8,
        "I32" => DType::I32,
        "I64" => DType::I64,
        _ => return None,
    })
}
