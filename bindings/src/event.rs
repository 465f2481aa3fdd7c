//! What happens to the engine's device, for apps that show or count it. Nobody has to listen: requests go on by themselves.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::channel::{self, Receiver, Refused, Sender};

/// Events that may wait for a reader; later ones are dropped.
const WAITING: usize = 64;

/// What happened to the device. None of it changes a token that was given.
#[derive(Clone, Debug, PartialEq, uniffi::Enum)]
pub enum EngineEvent {
    /// The device went: the system took it away, or it refused work that was right. The next use makes it again.
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// The same device was opened again and holds the weights.
    DeviceRebuilt {
        /// Its name.
        device: String,
        /// How long that took.
        seconds: f64,
    },
    /// The device could not be used again, and the CPU computes from now on.
    MovedToCpu {
        /// Why.
        reason: String,
        /// How long that took.
        seconds: f64,
    },
    /// Memory ran out, so adapters that no session used left the device and the work was tried again.
    OutOfMemory {
        /// What there was no room for.
        what: String,
        /// How many adapters left.
        evicted_adapters: u32,
    },
}

impl EngineEvent {
    /// Absent for what a later engine adds and this border does not know.
    fn new(event: &calora::engine::EngineEvent) -> Option<Self> {
        use calora::engine::EngineEvent as Event;
        Some(match event.clone() {
            Event::DeviceLost { reason } => Self::DeviceLost { reason },
            Event::DeviceRebuilt { device, time } => {
                Self::DeviceRebuilt { device, seconds: time.as_secs_f64() }
            }
            Event::MovedToCpu { reason, time } => Self::MovedToCpu { reason, seconds: time.as_secs_f64() },
            Event::OutOfMemory { what, evicted } => {
                Self::OutOfMemory { what, evicted_adapters: evicted as u32 }
            }
            _ => return None,
        })
    }
}

/// Passes events on to everyone who listens; nobody can, once it is closed.
pub(crate) struct Hub(Mutex<Option<Vec<Sender<EngineEvent>>>>);

impl Hub {
    /// Listens to an engine.
    pub(crate) fn new(engine: &calora::engine::Engine) -> Arc<Self> {
        let hub = Arc::new(Self(Mutex::new(Some(Vec::new()))));
        let told = hub.clone();
        engine.listen(move |event| told.publish(event));
        hub
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Sender<EngineEvent>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, event: &calora::engine::EngineEvent) {
        let Some(event) = EngineEvent::new(event) else { return };
        // A reader that is woken may subscribe or close.
        let readers = self.lock().clone().unwrap_or_default();
        let mut gone = false;
        for reader in &readers {
            gone |= reader.try_send(event.clone()) == Err(Refused::Closed);
        }
        if gone && let Some(readers) = self.lock().as_mut() {
            readers.retain(|reader| !reader.is_closed());
        }
    }

    pub(crate) fn subscribe(&self) -> EventStream {
        let (sender, events) = channel::bounded(WAITING);
        if let Some(readers) = self.lock().as_mut() {
            readers.push(sender);
        }
        EventStream { events }
    }

    /// Ends all streams once they are read to their end.
    pub(crate) fn close(&self) {
        let readers = self.lock().take();
        // Whom this wakes may come back.
        drop(readers);
    }
}

/// Events from the moment it was made.
#[derive(uniffi::Object)]
pub struct EventStream {
    events: Receiver<EngineEvent>,
}

#[uniffi::export]
impl EventStream {
    /// The next event; nothing after [`Self::cancel`] or once the engine is closed.
    pub async fn next(&self) -> Option<EngineEvent> {
        self.events.recv().await
    }

    /// Stops listening; a pending [`Self::next`] ends with nothing.
    pub fn cancel(&self) {
        self.events.close();
    }
}
