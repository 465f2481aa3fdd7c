//! What happens to an engine's device, told to whoever listens.
//!
//! Invariant: everything is told in the order in which it happened, on the thread that was computing. Locks of the engine
//! may be held meanwhile, so a listener passes on what it hears and does not call the engine.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What happened to the device. None of it changes a token that was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineEvent {
    /// The device went: the system took it away, or it refused work that was right. The next use makes it again.
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// The same device was opened again and holds the weights; conversations are computed anew as they go on.
    DeviceRebuilt {
        /// Its name.
        device: String,
        /// How long that took.
        time: Duration,
    },
    /// The device could not be used again, and the CPU computes from now on.
    MovedToCpu {
        /// Why.
        reason: String,
        /// How long that took.
        time: Duration,
    },
    /// Memory ran out, so adapters that nobody used left the device and the work was tried again.
    OutOfMemory {
        /// What there was no room for.
        what: String,
        /// Lists of adapters that left.
        evicted: usize,
    },
}

type Listener = Arc<dyn Fn(&EngineEvent) + Send + Sync>;

/// Who listens.
#[derive(Default)]
pub(crate) struct Events(Mutex<Option<Listener>>);

impl Events {
    /// Replaces the listener.
    pub(crate) fn listen(&self, listener: Listener) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
    }

    /// Tells the listener, and the log.
    pub(crate) fn publish(&self, events: impl IntoIterator<Item = EngineEvent>) {
        let listener = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for event in events {
            log::warn!("{event:?}");
            if let Some(listener) = &listener {
                listener(&event);
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}
