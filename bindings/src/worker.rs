//! The engine thread: everything that may touch a device runs here, one job after another.
//!
//! A job is at most one pass of the device (a token of each of several responses, or a chunk of a prompt), so that several
//! sessions advance in turn and a pause or a cancellation takes effect within one pass. A background session's job runs
//! only when no foreground job waits, however long that takes: there is no ageing. A foreground response that is ahead of
//! its reader waits for nothing, and in such gaps the background advances, a pass at a time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::channel;
use crate::error::{EngineError, Result};
use crate::options::SessionPriority;
use crate::pause::Gate;
use crate::stream::Run;

/// What the engine thread does at once.
pub(crate) enum Job {
    Once(Box<dyn FnOnce() + Send>),
    /// The next pass of a response; several that are decoding share one.
    Pass(Arc<Run>),
}

#[derive(Default)]
struct Jobs {
    foreground: VecDeque<Job>,
    background: VecDeque<Job>,
    /// Runs when nothing else is left, and the thread ends with it.
    last: Option<Box<dyn FnOnce() + Send>>,
    closed: bool,
}

impl Jobs {
    fn of(&mut self, priority: SessionPriority) -> &mut VecDeque<Job> {
        match priority {
            SessionPriority::Foreground => &mut self.foreground,
            SessionPriority::Background => &mut self.background,
        }
    }

    /// What is done next: the first job in turn, and with a response that is decoding all others of its priority that are.
    fn take(&mut self) -> Vec<Job> {
        let queue = if self.foreground.is_empty() { &mut self.background } else { &mut self.foreground };
        let decodes = |job: &Job| matches!(job, Job::Pass(run) if run.is_decoding());
        match queue.pop_front() {
            Some(first) if decodes(&first) => {
                let (others, rest) = std::mem::take(queue).into_iter().partition(decodes);
                *queue = rest;
                std::iter::once(first).chain::<VecDeque<Job>>(others).collect()
            }
            Some(first) => vec![first],
            None => self.last.take().map(Job::Once).into_iter().collect(),
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to do; whether there ever will be.
    fn wait(&self) -> bool {
        let mut jobs = self.lock();
        loop {
            if !jobs.foreground.is_empty() || !jobs.background.is_empty() || jobs.last.is_some() {
                return true;
            }
            if jobs.closed {
                return false;
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

pub(crate) struct Worker {
    queue: Arc<Queue>,
    pub(crate) gate: Arc<Gate>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start() -> Result<Self> {
        let (queue, gate) = (Arc::new(Queue::default()), Arc::new(Gate::default()));
        let (jobs, entrance) = (queue.clone(), gate.clone());
        std::thread::Builder::new()
            .name("calora-engine".into())
            .spawn(move || {
                while jobs.wait() {
                    entrance.enter();
                    // Chosen behind the gate: what came during a pause has its say.
                    let next = jobs.lock().take();
                    // A panic is a defect; it must end one request, not the app.
                    if catch_unwind(AssertUnwindSafe(|| run(next))).is_err() {
                        log::error!("a request ended in a panic of the engine");
                    }
                    entrance.leave();
                }
            })
            .map_err(|e| EngineError::internal(format!("no thread for the engine: {e}")))?;
        Ok(Self { queue, gate })
    }

    /// Queues a job; says whether the engine still takes any.
    pub(crate) fn post(&self, priority: SessionPriority, job: Job) -> bool {
        let mut jobs = self.queue.lock();
        if jobs.closed {
            return false;
        }
        jobs.of(priority).push_back(job);
        drop(jobs);
        self.queue.changed.notify_one();
        true
    }

    /// Puts jobs that were taken before their turn back to where they stood.
    pub(crate) fn put_back(&self, priority: SessionPriority, back: Vec<Job>) {
        let mut jobs = self.queue.lock();
        let queue = jobs.of(priority);
        back.into_iter().rev().for_each(|job| queue.push_front(job));
    }

    /// Runs something of the engine's own on its thread and waits for its result without blocking.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = channel::bounded(1);
        let job = Box::new(move || {
            // The caller may be gone.
            let _ = sender.try_send(job());
        });
        if !self.post(SessionPriority::Foreground, Job::Once(job)) {
            return Err(EngineError::closed("engine"));
        }
        result(receiver).await
    }

    /// Queues the last job; the thread ends after it.
    pub(crate) fn close(&self, last: impl FnOnce() + Send + 'static) {
        let mut jobs = self.queue.lock();
        jobs.last = Some(Box::new(last));
        jobs.closed = true;
        drop(jobs);
        self.queue.changed.notify_one();
        self.gate.close();
    }
}

impl Drop for Worker {
    /// An engine that was never closed, because loading it was cancelled: its thread ends all the same.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_one();
        self.gate.close();
    }
}

/// What a job sent; without a result it has panicked.
pub(crate) async fn result<T>(receiver: channel::Receiver<Result<T>>) -> Result<T> {
    receiver.recv().await.unwrap_or_else(|| Err(EngineError::internal("the engine panicked")))
}

fn run(jobs: Vec<Job>) {
    let mut runs = Vec::new();
    for job in jobs {
        match job {
            Job::Once(job) => job(),
            Job::Pass(run) => runs.push(run),
        }
    }
    Run::advance(runs);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_background_waits_until_no_foreground_job_does() {
        use SessionPriority::{Background, Foreground};
        let worker = Arc::new(Worker::start().unwrap());
        let order = Arc::new(Mutex::new(Vec::new()));
        let job = |name: &'static str, then: Option<(SessionPriority, &'static str)>| {
            let (order, worker) = (order.clone(), worker.clone());
            Job::Once(Box::new(move || {
                order.lock().unwrap().push(name);
                if let Some((priority, name)) = then {
                    let order = order.clone();
                    worker.post(priority, Job::Once(Box::new(move || order.lock().unwrap().push(name))));
                }
            }))
        };
        let (done, wait) = channel::bounded::<()>(1);
        pollster::block_on(worker.gate.pause());
        assert!(worker.post(Background, job("b1", None)));
        assert!(worker.post(Background, job("b2", Some((Foreground, "f4")))));
        assert!(worker.post(Background, job("b3", None)));
        assert!(worker.post(Background, Job::Once(Box::new(move || drop(done)))));
        assert!(worker.post(Foreground, job("f1", Some((Foreground, "f3")))));
        assert!(worker.post(Foreground, job("f2", None)));
        worker.put_back(Foreground, vec![job("f0", None)]);
        worker.gate.resume();
        assert!(pollster::block_on(wait.recv()).is_none(), "the last job has dropped its end");
        assert_eq!(*order.lock().unwrap(), ["f0", "f1", "f2", "f3", "b1", "b2", "f4", "b3"]);

        // Closing lets what is queued end, the background too, and then its own job.
        pollster::block_on(worker.gate.pause());
        assert!(worker.post(Background, job("b4", None)));
        assert!(worker.post(Foreground, job("f5", Some((Foreground, "refused")))));
        let (done, wait) = channel::bounded::<()>(1);
        worker.close(move || drop(done));
        assert!(pollster::block_on(wait.recv()).is_none());
        assert_eq!(order.lock().unwrap()[8..], ["f5", "b4"]);
        assert!(!worker.post(Foreground, job("late", None)));
    }

    #[test]
    fn a_worker_that_is_dropped_ends_its_thread() {
        let worker = Worker::start().unwrap();
        let queue = Arc::downgrade(&worker.queue);
        drop(worker);
        // The thread holds the queue as long as it lives.
        let start = std::time::Instant::now();
        while queue.strong_count() > 0 {
            assert!(start.elapsed().as_secs() < 60, "the thread waits for jobs that cannot come");
            std::thread::yield_now();
        }
    }
}
