//! Where a session's KV cache lies, shared with the engine, which may take it back from a session that is not responding.
//!
//! Invariant: a cache is taken back between passes only, and a session never uses one that was: its journal then says what
//! to compute again, as after a lost device.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use super::seat::Placed;
use super::shared::Shared;
use crate::device::CacheId;

/// One cache.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) placed: Placed<CacheId>,
    /// Whether it was taken back; locked by whoever uses the cache.
    gone: Mutex<bool>,
    /// Whether a response is in progress.
    pub(super) responding: AtomicBool,
}

impl Slot {
    pub(super) fn is_gone(&self) -> bool {
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the cache while the result lives; `None` if it is gone.
    pub(super) fn enter(&self) -> Option<MutexGuard<'_, bool>> {
        let gone = self.gone.lock().unwrap_or_else(PoisonError::into_inner);
        (!*gone).then_some(gone)
    }
}

/// All caches of an engine.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<Vec<Weak<Slot>>>);

impl Slots {
    /// Registers a cache that was just placed.
    pub(super) fn add(&self, placed: Placed<CacheId>) -> Arc<Slot> {
        let slot = Arc::new(Slot { placed, gone: Mutex::new(false), responding: AtomicBool::new(false) });
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|slot| slot.strong_count() > 0);
        all.push(Arc::downgrade(&slot));
        slot
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }
}

impl Shared {
    /// Drops the caches of sessions that are neither responding nor in the midst of a pass; how many.
    pub(crate) fn drop_idle_caches(&self) -> usize {
        let mut dropped = 0;
        for slot in self.slots.all() {
            if slot.responding.load(Ordering::Acquire) {
                continue;
            }
            // Never waits: whoever holds it is using the cache, and may wait for the device.
            let mut gone = match slot.gone.try_lock() {
                Ok(gone) => gone,
                Err(TryLockError::Poisoned(gone)) => gone.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            if !std::mem::replace(&mut *gone, true) && slot.placed.epoch == self.epoch() {
                self.release(slot.placed, |device, id| device.drop_cache(id));
                dropped += 1;
            }
        }
        dropped
    }
}
