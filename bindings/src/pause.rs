//! The gate before the engine thread: closed while the app is in the background.
//!
//! Invariant: once [`Gate::pause`] has resolved, no job runs until [`Gate::resume`] or [`Gate::close`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::channel::{self, Sender};

#[derive(Default)]
struct State {
    paused: bool,
    /// Closing engines run what is left, whether paused or not: it only cleans up.
    closing: bool,
    busy: bool,
    /// Callers of `pause` that wait for the job in progress.
    waiting: Vec<Sender<()>>,
}

#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until jobs may run, and marks one as running.
    pub(crate) fn enter(&self) {
        let mut state = self.lock();
        while state.paused && !state.closing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.busy = true;
    }

    /// The job is over.
    pub(crate) fn leave(&self) {
        let mut state = self.lock();
        state.busy = false;
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        // Dropping a sender wakes its receiver, who may come back.
        drop(waiting);
    }

    /// Closes the gate; resolves when the job in progress (one pass of the device at most) is over.
    pub(crate) async fn pause(&self) {
        let receiver = {
            let mut state = self.lock();
            state.paused = true;
            if !state.busy {
                return;
            }
            let (sender, receiver) = channel::bounded(1);
            state.waiting.push(sender);
            receiver
        };
        let _ = receiver.recv().await;
    }

    /// Opens the gate.
    pub(crate) fn resume(&self) {
        self.lock().paused = false;
        self.changed.notify_all();
    }

    /// Opens the gate for good.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }
}
