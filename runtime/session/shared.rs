//! What all sessions of an engine share: the device behind its lock, the model's plain data, its tokenizer and defaults.
//!
//! Invariant: the lock is held for one call to the device and never across tokens, so that sessions interleave.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::options::GenerationOptions;
use super::resident::{AdapterKey, BoundAdapter, Resident, ResidentAdapter};
use crate::device::{Device, Model};
use crate::error::{Error, Result};
use crate::text::{Tokenizer, TokenizerConfig};

/// The common ground of sessions.
pub(crate) struct Shared {
    pub(crate) model: Model,
    pub(crate) device: Mutex<Box<dyn Device>>,
    /// The model's folder, for errors.
    pub(crate) folder: PathBuf,
    pub(crate) tokenizer: Option<Arc<Tokenizer>>,
    pub(crate) tokenizer_config: TokenizerConfig,
    pub(crate) end_of_turn: Vec<u32>,
    pub(crate) defaults: GenerationOptions,
    pub(crate) context_size: usize,
    pub(crate) prefill_chunk: usize,
    /// What is resident and still in use by somebody.
    pub(crate) residents: Mutex<HashMap<Arc<AdapterKey>, Weak<Resident>>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.model.recipe.architecture, self.folder.display())
    }
}

impl Shared {
    /// The device, for one call.
    pub(crate) fn device(&self) -> MutexGuard<'_, Box<dyn Device>> {
        // A panic of another thread inside a device is that thread's error; the device checks its own state.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens the model knows, padding included.
    pub(crate) fn vocab(&self) -> usize {
        self.model.recipe.shape.vocab
    }

    /// The tokenizer, or an error that names the missing file.
    pub(crate) fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().ok_or_else(|| Error::MissingFile {
            folder: self.folder.clone(),
            file: "tokenizer.json".into(),
            help: "text needs a tokenizer; take the file from the model's repository, or use token ids"
                .into(),
        })
    }

    /// Makes a list of adapters resident as one tail, or finds it resident already; `None` for an empty list.
    pub(crate) fn resident(
        self: &Arc<Self>,
        adapters: &[(BoundAdapter, f32)],
    ) -> Result<Option<ResidentAdapter>> {
        if adapters.is_empty() {
            return Ok(None);
        }
        if let Some((adapter, scale)) = adapters.iter().find(|(_, scale)| !scale.is_finite()) {
            let option = format!("scale of adapter {}", adapter.name());
            return Err(Error::option(&option, scale, "must be a finite number"));
        }
        let key: Arc<AdapterKey> =
            Arc::new(adapters.iter().map(|(adapter, scale)| (adapter.id(), scale.to_bits())).collect());
        let mut residents = self.residents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resident) = residents.get(&key).and_then(Weak::upgrade) {
            return Ok(Some(ResidentAdapter(resident)));
        }
        residents.retain(|_, resident| resident.strong_count() > 0);
        let resident = Arc::new(Resident::load(self, adapters, key.clone())?);
        residents.insert(key, Arc::downgrade(&resident));
        Ok(Some(ResidentAdapter(resident)))
    }
}
