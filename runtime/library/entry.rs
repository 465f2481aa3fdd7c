//! What a library says of its adapters.

use std::path::PathBuf;
use std::sync::Arc;

use super::version::Version;
use crate::adapter::TaskAdapter;
use crate::error::Error;

/// One adapter of a library, as it was when the library was asked.
#[derive(Clone, Debug)]
pub struct AdapterEntry {
    /// The file's name without `.safetensors`, or the PEFT folder's.
    pub name: String,
    /// The task file or PEFT folder.
    pub path: PathBuf,
    /// Which state of its files this is.
    pub version: Version,
    /// The opened file, which says what it is; `None` where it could not be read.
    pub adapter: Option<Arc<TaskAdapter>>,
    /// Bytes of its branches in the mapped file; they cost memory only while they are read.
    pub mapped_bytes: u64,
    /// Bytes of it that are on the device; 0 until it is used or preloaded.
    pub resident_bytes: u64,
    /// Whether a session uses it.
    pub in_use: bool,
    /// Whether it was preloaded, and stays whatever the budget.
    pub preloaded: bool,
    /// Why it could not be read, or does not belong to this model (known once it was asked for).
    pub error: Option<Arc<Error>>,
}

/// What [`super::AdapterLibrary::refresh`] found.
#[derive(Clone, Debug)]
pub enum AdapterChange {
    /// A new adapter.
    Added {
        /// Its name.
        name: String,
        /// Its version.
        version: Version,
    },
    /// Another content under a known name: a new generation. Sessions keep the one that they have.
    Replaced {
        /// Its name.
        name: String,
        /// The new version.
        version: Version,
    },
    /// It is gone from the folder. Sessions keep what they have.
    Removed {
        /// Its name.
        name: String,
    },
    /// It is there and cannot be read; told once for each state of its files.
    Refused {
        /// Its name.
        name: String,
        /// Why.
        error: Arc<Error>,
    },
}
