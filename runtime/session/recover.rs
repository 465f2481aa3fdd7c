//! What a session does when the device fails: make room, have the device made again, or go on with the CPU.
//!
//! Invariant: whatever recovers changes nothing that was computed. The caller tries the same work again, and the cache
//! brings a new device to where the old one was, one pass at a time.

use super::Session;
use super::events::EngineEvent;
use super::residency::Residency;
use crate::device::{Answer, Want};
use crate::error::{Error, Result};

/// Losses within one request until the device is given up for the CPU: work that takes a device down every time does so
/// again on the next.
const MOST_LOSSES: u32 = 3;

impl Residency {
    /// Whether work that failed with this error is to be tried again; else the error. `losses` counts within one request.
    fn recover(&self, error: Error, losses: &mut u32) -> Result<()> {
        let shared = self.shared();
        match &error {
            Error::OutOfMemory { what, .. } => {
                let evicted = self.evict_idle();
                if evicted == 0 {
                    return Err(error);
                }
                shared.publish(EngineEvent::OutOfMemory { what: what.clone(), evicted });
                Ok(())
            }
            Error::DeviceLost { .. } | Error::Gpu { .. } if shared.can_recover() => {
                *losses += 1;
                // The CPU gets as many tries; another session may have settled for it already.
                let gives_up =
                    *losses == 2 * MOST_LOSSES || *losses == MOST_LOSSES && !shared.settle_for_cpu(&error);
                if gives_up { Err(error) } else { Ok(()) }
            }
            _ => Err(error),
        }
    }

    /// Does what places something on the device, again as long as that helps.
    pub(super) fn place<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut losses = 0;
        loop {
            match work() {
                Err(error) => self.recover(error, &mut losses)?,
                done => return done,
            }
        }
    }
}

impl Session {
    /// One pass over `tokens` at the cache's end. `None` asks to be called again: the device is being brought to where a
    /// lost one was, which takes a call for each of its passes.
    pub(super) fn extend(&mut self, tokens: &[u32], want: Want) -> Result<Option<Answer>> {
        let adapters = self.adapters.as_ref();
        let result = self.cache.extend(&self.residency, tokens, adapters, want);
        self.or_recover(result)
    }

    /// The next chunk of `tokens`, of which the cache holds the beginning; `None` as in [`Session::extend`].
    pub(super) fn step(&mut self, tokens: &[u32], want: Want) -> Result<Option<Answer>> {
        let adapters = self.adapters.as_ref();
        let result = self.cache.step(&self.residency, tokens, adapters, want);
        self.or_recover(result)
    }

    pub(super) fn or_recover(&mut self, result: Result<Option<Answer>>) -> Result<Option<Answer>> {
        match result {
            Err(error) => self.residency.recover(error, &mut self.losses).map(|()| None),
            done => done,
        }
    }
}
