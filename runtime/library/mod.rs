//! A folder of adapters for one engine: found by their headers, mapped at once, resident when used, replaced under
//! running sessions.
//!
//! Invariant: one generation (one state of an adapter's files) is one [`BoundAdapter`], so that it is resident once; a
//! session that holds a generation keeps it, whatever happens to the folder. The library starts no thread: whoever wants
//! to watch calls [`AdapterLibrary::refresh`], which asks the system about each file and reads only those that changed.

mod entry;
mod folder;
mod version;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use entry::{AdapterChange, AdapterEntry};
use folder::Folder;
pub use version::Version;

use crate::adapter::{AdapterOptions, TaskAdapter};
use crate::engine::{BoundAdapter, Engine, ResidentAdapter};
use crate::error::{Error, Result};

/// A folder of adapters, opened for one engine. A cheap handle: clones share everything.
#[derive(Clone, Debug)]
pub struct AdapterLibrary(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    folder: Folder,
    options: AdapterOptions,
    slots: Mutex<BTreeMap<String, Slot>>,
}

/// One generation of one adapter.
#[derive(Debug)]
struct Slot {
    path: PathBuf,
    version: Version,
    adapter: Option<Arc<TaskAdapter>>,
    bound: Option<BoundAdapter>,
    preloaded: Option<ResidentAdapter>,
    error: Option<Arc<Error>>,
}

impl Slot {
    /// Maps what lies at a path and reads its header; an adapter that is refused is one with an error.
    fn open(path: PathBuf, version: Version, options: &AdapterOptions) -> Self {
        let (adapter, error) = match TaskAdapter::open_with(&path, options) {
            Ok(adapter) => (Some(Arc::new(adapter)), None),
            Err(error) => (None, Some(Arc::new(error))),
        };
        Self { path, version, adapter, bound: None, preloaded: None, error }
    }

    /// The generation's adapter, bound at the first call.
    fn bound(&mut self, engine: &Engine, options: &AdapterOptions) -> Result<BoundAdapter> {
        if let Some(bound) = &self.bound {
            return Ok(bound.clone());
        }
        let bound = match self.bind(engine, options) {
            Ok(bound) => bound,
            Err(error) => {
                self.error = Some(Arc::new(error));
                // An error cannot be had twice: asking again gives one to return.
                self.bind(engine, options)?
            }
        };
        self.error = None;
        Ok(self.bound.insert(bound).clone())
    }

    fn bind(&mut self, engine: &Engine, options: &AdapterOptions) -> Result<BoundAdapter> {
        let adapter = match &self.adapter {
            Some(adapter) => adapter,
            None => self.adapter.insert(Arc::new(TaskAdapter::open_with(&self.path, options)?)),
        };
        let bound = engine.fit_adapter(adapter)?;
        engine.prove(&bound, options)?;
        Ok(bound)
    }
}

impl AdapterLibrary {
    /// Opens a folder and looks at what lies in it: task files (`.safetensors`) and PEFT folders. Headers are read only; an
    /// adapter that cannot be read is an entry with an error. Fails where the folder cannot be listed.
    pub fn open(engine: &Engine, folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(engine, folder, AdapterOptions::default())
    }

    /// [`Self::open`] with options that every adapter of the folder is opened with. Encrypted ones are decrypted whole when
    /// they are found, and a list of signers has each file read once; a canary is checked at the first [`Self::get`].
    pub fn open_with(engine: &Engine, folder: impl AsRef<Path>, options: AdapterOptions) -> Result<Self> {
        let (engine, folder) = (engine.clone(), Folder { path: folder.as_ref().to_owned() });
        let library = Self(Arc::new(Inner { engine, folder, options, slots: Mutex::default() }));
        library.refresh()?;
        Ok(library)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder.path
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Looks again, and tells what changed since the last time, by name. A file whose version is unchanged is not read.
    pub fn refresh(&self) -> Result<Vec<AdapterChange>> {
        let mut found = self.0.folder.list()?;
        let mut slots = self.lock();
        // What another thread put there after the list was made, and had seen since, is not gone.
        for name in slots.keys().filter(|name| !found.contains_key(*name)).cloned().collect::<Vec<_>>() {
            found.extend(self.0.folder.place(&name).map(|path| (name, path)));
        }
        let gone: Vec<String> = slots.keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        let mut old: Vec<Slot> = gone.iter().filter_map(|name| slots.remove(name)).collect();
        let mut changes: Vec<_> = gone.into_iter().map(|name| AdapterChange::Removed { name }).collect();
        // One that goes while it is looked at is reported the next time.
        found.retain(|_, path| path.exists());
        for (name, path) in found {
            let Ok(version) = Version::at(&path) else { continue };
            if slots.get(&name).is_some_and(|slot| slot.version == version) {
                continue;
            }
            let slot = Slot::open(path, version.clone(), &self.0.options);
            let error = slot.error.clone();
            let before = slots.insert(name.clone(), slot);
            let known = before.as_ref().is_some_and(|slot| slot.adapter.is_some());
            old.extend(before);
            changes.push(match error {
                Some(error) => AdapterChange::Refused { name, error },
                None if known => AdapterChange::Replaced { name, version },
                None => AdapterChange::Added { name, version },
            });
        }
        drop(slots);
        // What was preloaded of them waits for the device; nobody should wait for that meanwhile.
        drop(old);
        Ok(changes)
    }

    /// All adapters by name, and what of them is in memory.
    pub fn entries(&self) -> Vec<AdapterEntry> {
        let residency = self.0.engine.residency();
        let slots = self.lock();
        let entry = |(name, slot): (&String, &Slot)| {
            let (mut resident_bytes, mut in_use) = (0, false);
            for list in &residency.lists {
                let same = |a: &BoundAdapter| slot.bound.as_ref().is_some_and(|bound| bound.same(a));
                if let Some(adapter) = list.adapters.iter().find(|a| same(a)) {
                    resident_bytes += adapter.byte_len() as u64;
                    // Preloading holds just this list.
                    let own = slot.preloaded.is_some() && list.adapters.len() == 1;
                    in_use |= list.holders > usize::from(own);
                }
            }
            AdapterEntry {
                name: name.clone(),
                path: slot.path.clone(),
                version: slot.version.clone(),
                adapter: slot.adapter.clone(),
                mapped_bytes: slot.adapter.as_ref().map_or(0, |a| a.byte_len() as u64),
                resident_bytes,
                in_use,
                preloaded: slot.preloaded.is_some(),
                error: slot.error.clone(),
            }
        };
        slots.iter().map(entry).collect()
    }

    /// The adapter of this name as the folder last had it, bound to the engine's model; the same one until its files
    /// change and [`Self::refresh`] sees it.
    pub fn get(&self, name: &str) -> Result<BoundAdapter> {
        Ok(self.open_adapter(name)?.0)
    }

    /// [`Self::get`], with the opened file, which says what it is.
    pub fn open_adapter(&self, name: &str) -> Result<(BoundAdapter, Arc<TaskAdapter>)> {
        self.with(name, |slot| {
            let bound = slot.bound(&self.0.engine, &self.0.options)?;
            Ok((bound, slot.adapter.clone().ok_or_else(|| self.missing(name))?))
        })
    }

    /// Makes adapters resident and keeps them so, whatever the budget, until [`Self::evict`], [`Self::release`], or until
    /// they are replaced. Stops at the first that cannot be.
    pub fn preload(&self, names: &[impl AsRef<str>]) -> Result<()> {
        for name in names {
            let name = name.as_ref();
            let bound = self.get(name)?;
            let resident = self.0.engine.resident(&[(bound.clone(), 1.0)])?;
            self.with(name, |slot| {
                if slot.bound.as_ref().is_some_and(|now| now.same(&bound)) {
                    slot.preloaded = resident;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Lets go of a resident adapter; it stays where a session uses it.
    pub fn evict(&self, name: &str) -> Result<()> {
        let (bound, preloaded) = self.with(name, |slot| Ok((slot.bound.clone(), slot.preloaded.take())))?;
        drop(preloaded);
        if let Some(bound) = bound {
            self.0.engine.evict(&bound);
        }
        Ok(())
    }

    /// Lets go of everything that was preloaded; the budget and the sessions decide what stays.
    pub fn release(&self) {
        let preloaded: Vec<_> = self.lock().values_mut().filter_map(|slot| slot.preloaded.take()).collect();
        drop(preloaded);
    }

    /// Asks the system to read an adapter's bytes soon, so that making it resident does not wait for the disk. A hint:
    /// returns at once, and what it brings in are pages that the system may drop again.
    pub fn prefetch(&self, name: &str) -> Result<()> {
        self.get(name)?.tail().prefetch();
        Ok(())
    }

    /// Puts a copy of a task file in the place of an adapter if that is still at the version `expected` (`None`: if there
    /// is none of this name), and gives its version. Of several who expect the same, one wins.
    ///
    /// The file must belong to this engine's model. Whoever is killed meanwhile leaves the old one or the new one. Sessions
    /// keep the old one; [`Self::get`] gives the new one.
    pub fn replace(
        &self,
        name: &str,
        expected: Option<&Version>,
        source: impl AsRef<Path>,
    ) -> Result<Version> {
        let source = source.as_ref();
        if source.is_dir() {
            return Err(Error::UnsupportedAdapter {
                path: source.to_owned(),
                feature: "replacing by a PEFT folder".into(),
                help: "a folder cannot be put in place in one step; make it a task file with `calora pack`"
                    .into(),
            });
        }
        let open = |path: &Path| TaskAdapter::open_with(path, &self.0.options);
        let check = |path: &Path| self.0.engine.fit_adapter(&open(path)?).map(drop);
        // First for errors that name the caller's file, then for what will be there.
        check(source)?;
        let version = self.0.folder.replace(name, expected, source, check)?;
        self.refresh()?;
        Ok(version)
    }

    /// Removes an adapter from the folder if it is still at the version `expected`. Sessions keep what they have.
    pub fn remove(&self, name: &str, expected: &Version) -> Result<()> {
        self.0.folder.remove(name, expected)?;
        self.refresh()?;
        Ok(())
    }

    fn with<T>(&self, name: &str, job: impl FnOnce(&mut Slot) -> Result<T>) -> Result<T> {
        self.lock().get_mut(name).map_or_else(|| Err(self.missing(name)), job)
    }

    fn missing(&self, name: &str) -> Error {
        let help = "no adapter of this name was there at the last refresh".into();
        Error::MissingFile { folder: self.folder().to_owned(), file: name.to_owned(), help }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
