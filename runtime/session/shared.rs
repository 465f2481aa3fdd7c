//! What all sessions of an engine share: the device behind its lock, the model's plain data, its tokenizer and defaults.
//!
//! Invariant: the lock is held for one call to the device and never across tokens, so that sessions interleave.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::events::{EngineEvent, Events};
use super::options::GenerationOptions;
use super::prefixes::Prefixes;
use super::seat::{Placed, Seat};
use super::slot::Slots;
use crate::adapter::Tail;
use crate::device::{Answer, Device, DeviceFacts, DeviceInfo, DeviceMemory, Forward, Model};
use crate::error::{Error, Result};
use crate::text::{Tokenizer, TokenizerConfig};

/// The common ground of sessions.
pub(crate) struct Shared {
    pub(crate) model: Model,
    pub(crate) seat: Mutex<Seat>,
    /// Of the device that computes, or computed last: known without waiting for a pass.
    pub(crate) info: Mutex<Arc<DeviceInfo>>,
    /// The seat's, likewise.
    pub(crate) epoch: AtomicU64,
    /// Whom the seat's events are told.
    pub(crate) events: Events,
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
    /// Every session's cache.
    pub(crate) slots: Slots,
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
    fn seat(&self) -> MutexGuard<'_, Seat> {
        // A panic of another thread inside a device is that thread's error; the device checks its own state.
        self.seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn info(&self) -> MutexGuard<'_, Arc<DeviceInfo>> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something with the seat; what happened to the device is told at once.
    fn with_seat<T>(&self, work: impl FnOnce(&mut Seat) -> T) -> T {
        let mut seat = self.seat();
        let result = work(&mut seat);
        let news = seat.take_news();
        if !news.is_empty() {
            *self.info() = seat.info().clone();
            self.epoch.store(seat.epoch(), Ordering::Release);
            self.events.publish(news);
        }
        result
    }

    /// Places something on the device, which is made again first if it was lost.
    pub(crate) fn place<T>(&self, work: impl FnOnce(&mut dyn Device) -> Result<T>) -> Result<Placed<T>> {
        self.with_seat(|seat| seat.call(work))
    }

    /// Lets go of something, unless it went with its device.
    pub(crate) fn release<T: Copy>(&self, placed: Placed<T>, work: impl FnOnce(&mut dyn Device, T)) {
        let mut seat = self.seat();
        if seat.epoch() == placed.epoch
            && let Some(device) = seat.device()
        {
            work(device.as_mut(), placed.id);
        }
    }

    /// Counts up whenever a device is lost: what was placed earlier is gone. Read without waiting for a pass; whoever
    /// names an id is checked again.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Something with ids of this epoch; `None` if it is over.
    pub(crate) fn call<T>(
        &self,
        epoch: u64,
        work: impl FnOnce(&mut dyn Device) -> Result<T>,
    ) -> Result<Option<T>> {
        self.with_seat(|seat| match seat.epoch() == epoch {
            true => Ok(Some(seat.call(work)?.id)),
            false => Ok(None),
        })
    }

    /// Passes of sessions with ids of this epoch, as one of the device; `None` if it is over.
    pub(crate) fn forward(&self, epoch: u64, passes: &[Forward<'_>]) -> Result<Option<Vec<Answer>>> {
        self.call(epoch, |device| {
            let tokens: usize = passes.iter().map(|pass| pass.tokens.len()).sum();
            self.counters.passes.fetch_add(1, Ordering::Relaxed);
            self.counters.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
            device.forward_batch(passes)
        })
    }

    /// Whether a lost device is made again.
    pub(crate) fn can_recover(&self) -> bool {
        self.seat().can_recover()
    }

    /// Goes on with the CPU; whether there is one.
    pub(crate) fn settle_for_cpu(&self, reason: &Error) -> bool {
        self.with_seat(|seat| seat.settle_for_cpu(reason))
    }

    /// Gives the device up; whether another will take over.
    pub(crate) fn lose(&self, reason: &str) -> bool {
        self.with_seat(|seat| seat.lose(reason.to_owned()))
    }

    /// What computes, or computed last.
    pub(crate) fn device_info(&self) -> Arc<DeviceInfo> {
        self.info().clone()
    }

    /// What the device's self-test found.
    pub(crate) fn device_facts(&self) -> Option<DeviceFacts> {
        self.seat().device().and_then(|device| device.facts())
    }

    /// Bytes that the device holds; none between a loss and the next use.
    pub(crate) fn memory(&self) -> DeviceMemory {
        self.seat().device().map_or_else(DeviceMemory::default, |device| device.memory())
    }

    /// Bytes that branches take on the device, at most.
    pub(crate) fn tail_bytes(&self, tails: &[&Tail]) -> Result<u64> {
        Ok(self.place(|device| Ok(device.tail_bytes(tails)))?.id)
    }

    /// Gives working memory back that the next pass makes again.
    pub(crate) fn trim_device(&self) {
        if let Some(device) = self.seat().device() {
            device.trim();
        }
    }

    /// Tells what happened.
    pub(crate) fn publish(&self, event: EngineEvent) {
        self.events.publish([event]);
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
