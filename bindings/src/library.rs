//! A folder of adapters, as apps see it: every call runs on the engine's thread.

use std::sync::{Arc, Mutex, PoisonError};

use calora::library::Version;

use crate::adapter::{AdapterInfo, TaskAdapter};
use crate::engine::Core;
use crate::error::{EngineError, Result};

/// What an engine holds of its libraries, to let go of them when it closes.
pub(crate) type SharedLibrary = Mutex<Option<calora::library::AdapterLibrary>>;

/// One adapter of a library, as it was when the library was asked.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct AdapterEntry {
    /// The file's name without `.safetensors`, or the PEFT folder's.
    pub name: String,
    /// The task file or PEFT folder.
    pub path: String,
    /// Which state of its files this is; opaque.
    pub version: String,
    /// What it says of itself; absent where it could not be read.
    pub info: Option<AdapterInfo>,
    /// Bytes of its branches in the mapped file; they cost memory only while they are read.
    pub mapped_bytes: u64,
    /// Bytes of it that are on the device.
    pub resident_bytes: u64,
    /// Whether a session uses it.
    pub in_use: bool,
    /// Whether it was preloaded, and stays whatever the budget.
    pub preloaded: bool,
    /// Why it cannot be used, for people; opening it fails with the error itself.
    pub problem: Option<String>,
}

/// What a look at the folder found.
#[derive(Clone, Debug, PartialEq, uniffi::Enum)]
pub enum AdapterChange {
    /// A new adapter.
    Added {
        /// Its name.
        name: String,
        /// Its version.
        version: String,
    },
    /// Another content under a known name.
    Replaced {
        /// Its name.
        name: String,
        /// The new version.
        version: String,
    },
    /// It is gone from the folder.
    Removed {
        /// Its name.
        name: String,
    },
    /// It is there and cannot be read.
    Refused {
        /// Its name.
        name: String,
        /// Why, for people.
        problem: String,
    },
}

impl From<calora::library::AdapterChange> for AdapterChange {
    fn from(change: calora::library::AdapterChange) -> Self {
        use calora::library::AdapterChange as Change;
        match change {
            Change::Added { name, version } => Self::Added { name, version: version.to_string() },
            Change::Replaced { name, version } => Self::Replaced { name, version: version.to_string() },
            Change::Removed { name } => Self::Removed { name },
            Change::Refused { name, error } => Self::Refused { name, problem: error.to_string() },
        }
    }
}

impl From<calora::library::AdapterEntry> for AdapterEntry {
    fn from(entry: calora::library::AdapterEntry) -> Self {
        Self {
            name: entry.name,
            path: entry.path.display().to_string(),
            version: entry.version.to_string(),
            info: entry.adapter.map(|adapter| AdapterInfo::of(&adapter)),
            mapped_bytes: entry.mapped_bytes,
            resident_bytes: entry.resident_bytes,
            in_use: entry.in_use,
            preloaded: entry.preloaded,
            problem: entry.error.map(|error| error.to_string()),
        }
    }
}

/// A folder of adapters, opened for one engine.
#[derive(uniffi::Object)]
pub struct AdapterLibrary {
    core: Arc<Core>,
    library: Arc<SharedLibrary>,
}

impl AdapterLibrary {
    pub(crate) fn new(core: Arc<Core>, library: Arc<SharedLibrary>) -> Self {
        Self { core, library }
    }

    /// Runs something on the engine's thread.
    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&calora::library::AdapterLibrary) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.core.check()?;
        let library = self.library.clone();
        self.core
            .worker
            .run(move || {
                let library = library.lock().unwrap_or_else(PoisonError::into_inner).clone();
                job(&library.ok_or_else(|| EngineError::closed("engine"))?)
            })
            .await
    }
}

#[uniffi::export]
impl AdapterLibrary {
    /// All adapters by name, and what of them is in memory.
    pub async fn entries(&self) -> Result<Vec<AdapterEntry>> {
        self.run(|library| Ok(library.entries().into_iter().map(Into::into).collect())).await
    }

    /// Looks at the folder again, and tells what changed since the last time.
    pub async fn refresh(&self) -> Result<Vec<AdapterChange>> {
        self.run(|library| Ok(library.refresh()?.into_iter().map(Into::into).collect())).await
    }

    /// The adapter of this name as the folder last had it.
    pub async fn open(&self, name: String) -> Result<Arc<TaskAdapter>> {
        self.run(move |library| {
            let (bound, adapter) = library.open_adapter(&name)?;
            let coverage = library.engine().coverage(&adapter)?;
            Ok(Arc::new(TaskAdapter::new(&adapter, bound, &coverage)))
        })
        .await
    }

    /// Makes adapters resident and keeps them so, whatever the budget.
    pub async fn preload(&self, names: Vec<String>) -> Result<()> {
        self.run(move |library| Ok(library.preload(&names)?)).await
    }

    /// Lets go of a resident adapter; it stays where a session uses it.
    pub async fn evict(&self, name: String) -> Result<()> {
        self.run(move |library| Ok(library.evict(&name)?)).await
    }

    /// Asks the system to read an adapter's bytes soon.
    pub async fn prefetch(&self, name: String) -> Result<()> {
        self.run(move |library| Ok(library.prefetch(&name)?)).await
    }

    /// Puts a copy of a task file in an adapter's place if that is still at the version `expected`; its version.
    pub async fn replace(&self, name: String, expected: Option<String>, source: String) -> Result<String> {
        self.run(move |library| {
            let expected = expected.map(Version::from);
            Ok(library.replace(&name, expected.as_ref(), source)?.to_string())
        })
        .await
    }

    /// Removes an adapter if it is still at the version `expected`.
    pub async fn remove(&self, name: String, expected: String) -> Result<()> {
        self.run(move |library| Ok(library.remove(&name, &Version::from(expected))?)).await
    }
}
