//! The engine thread: everything that may touch a device runs here, one job after another.
//!
//! A job is at most one pass of the device (a token, or a chunk of a prompt), so that several sessions advance in turn
//! and a pause or a cancellation takes effect within one pass.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{EngineError, Result};
use crate::pause::Gate;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Worker {
    /// Absent once the engine is closed; the thread ends with it.
    jobs: Mutex<Option<Sender<Job>>>,
    pub(crate) gate: Arc<Gate>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start() -> Result<Self> {
        let (sender, receiver) = channel::<Job>();
        let gate = Arc::new(Gate::default());
        let entrance = gate.clone();
        std::thread::Builder::new()
            .name("calora-engine".into())
            .spawn(move || {
                for job in receiver {
                    entrance.enter();
                    // A panic is a defect; it must end one request, not the app.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        log::error!("a request ended in a panic of the engine");
                    }
                    entrance.leave();
                }
            })
            .map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        Ok(Self { jobs: Mutex::new(Some(sender)), gate })
    }

    /// Queues a job; says whether the engine still takes any.
    pub(crate) fn post(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.as_ref().is_some_and(|sender| sender.send(Box::new(job)).is_ok())
    }

    /// Runs something on the engine thread and waits for its result without blocking.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = async_channel::bounded(1);
        let posted = self.post(move || {
            // The caller may be gone.
            let _ = sender.try_send(job());
        });
        if !posted {
            return Err(EngineError::closed("engine"));
        }
        // Without a result the job has panicked.
        receiver.recv().await.unwrap_or_else(|_| Err(EngineError::internal("the engine panicked")))
    }

    /// Queues the last job; the thread ends after it.
    pub(crate) fn close(&self, last: impl FnOnce() + Send + 'static) {
        self.post(last);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.gate.close();
    }
}
