//! What all sessions of an engine share: the device behind its lock, the model's plain data, its tokenizer and defaults.
//!
//! Invariant: the lock is held for one call to the device and never across tokens, so that sessions interleave.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::options::GenerationOptions;
use super::prefixes::Prefixes;
use crate::device::{Answer, Device, Forward, Model};
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
    pub(crate) counters: Counters,
    /// Bytes of one position's keys and values outside the device.
    pub(crate) position_bytes: usize,
    pub(crate) prefixes: Prefixes,
}

/// What was computed, counted as it happens.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) passes: AtomicU64,
    pub(crate) tokens: AtomicU64,
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

    /// One pass of the device.
    pub(crate) fn forward(&self, pass: &Forward<'_>) -> Result<Answer> {
        self.counters.passes.fetch_add(1, Ordering::Relaxed);
        self.counters.tokens.fetch_add(pass.tokens.len() as u64, Ordering::Relaxed);
        self.device().forward(pass)
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
}
