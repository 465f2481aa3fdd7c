//! A response as the app pulls it.
//!
//! The engine thread runs at most [`AHEAD`] chunks ahead of the app, one pass of the device a job, so that the device is
//! busy while the app draws, a slow reader costs no memory, and other sessions advance in between. Responses that are
//! decoding share a pass. Cancelling (or dropping the stream) stops the device within one pass and leaves the session as
//! it was before the request.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use calora::session::{Generation, Progress, Session, pass_together};

use crate::channel::{self, Receiver, Sender};
use crate::error::{EngineError, Result};
use crate::options::{GenerationOptions, ResponseChunk};
use crate::session::Cell;
use crate::worker::Job;

/// Chunks that may wait for the app.
const AHEAD: usize = 4;

/// What is asked.
pub(crate) enum Prompt {
    /// The user's next message.
    Message(String),
    /// Text to go on with, as given.
    Text(String),
}

/// Where the engine thread is with a response; touched by nobody else.
enum Phase {
    Waiting { prompt: Prompt, options: GenerationOptions },
    Running(Box<Generation>),
    Over,
}

/// What a pass gave.
enum Outcome {
    /// The response goes on; perhaps with a piece of text.
    More(Option<calora::session::ResponseChunk>),
    /// It has ended, with its last piece or an error.
    Last(Result<ResponseChunk>),
    /// There is nothing to compute.
    Rest,
}

/// A response in progress.
pub(crate) struct Run {
    cell: Arc<Cell>,
    phase: Mutex<Phase>,
    cancelled: AtomicBool,
    /// Whether nothing more is computed; chunks may still wait for the app.
    over: AtomicBool,
    /// Whether a job for this response is queued or running.
    scheduled: Mutex<bool>,
    chunks: Sender<Result<ResponseChunk>>,
    pulled: Receiver<Result<ResponseChunk>>,
}

impl Run {
    pub(crate) fn new(cell: Arc<Cell>, prompt: Prompt, options: GenerationOptions) -> Self {
        let (chunks, pulled) = channel::bounded(AHEAD);
        let phase = Mutex::new(Phase::Waiting { prompt, options });
        let (cancelled, over) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { cell, phase, cancelled, over, scheduled: Mutex::new(false), chunks, pulled }
    }

    /// Whether the session is free for another request.
    pub(crate) fn is_over(&self) -> bool {
        self.cancelled.load(Ordering::Acquire) || self.over.load(Ordering::Acquire)
    }

    /// Why a cancelled response ended: somebody cancelled it, or closed what it belongs to.
    fn stopped(&self) -> EngineError {
        self.cell.check().err().unwrap_or(EngineError::Cancelled)
    }

    /// The last thing the app gets. Over before it is sent: who has it may ask again at once.
    fn end(&self, last: Result<ResponseChunk>) {
        self.over.store(true, Ordering::Release);
        // There is room: a job is only queued while there is.
        let _ = self.chunks.try_send(last);
        self.chunks.close();
    }

    pub(crate) fn cancel(self: &Arc<Self>) {
        if self.over.load(Ordering::Acquire) || self.cancelled.swap(true, Ordering::AcqRel) {
            return;
        }
        // Wakes a pull that waits.
        self.chunks.close();
        // The roll-back belongs to the engine thread.
        self.schedule();
    }

    fn scheduled(&self) -> MutexGuard<'_, bool> {
        self.scheduled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues the next pass unless one is queued.
    fn schedule(self: &Arc<Self>) {
        if !std::mem::replace(&mut *self.scheduled(), true) {
            self.post();
        }
    }

    fn post(self: &Arc<Self>) {
        if !self.cell.post(Job::Pass(self.clone())) {
            self.end(Err(EngineError::closed("engine")));
        }
    }

    /// Whether the next pass computes one token. Asked by the engine thread only.
    pub(crate) fn is_decoding(&self) -> bool {
        let phase = self.phase();
        matches!(&*phase, Phase::Running(generation) if generation.is_decoding())
            && !self.cancelled.load(Ordering::Acquire)
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One job of the engine thread: a pass of one response, or one of several that are decoding.
    pub(crate) fn advance(mut runs: Vec<Arc<Self>>) {
        match &runs[..] {
            [] => {}
            [run] => {
                if run.cell.is_free(|| Job::Pass(run.clone())) {
                    run.go_on(run.pass());
                }
            }
            _ => Self::advance_together(&mut runs),
        }
    }

    /// One pass for all whose turn it is; the others keep their places.
    ///
    /// No two are of one session: the earlier one would be cancelled, and is no longer decoding then.
    fn advance_together(runs: &mut Vec<Arc<Self>>) {
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(runs.len());
        {
            let mut locked: Vec<_> = runs.iter().map(|run| (run.phase(), run.cell.lock())).collect();
            let mut members = Vec::with_capacity(locked.len());
            for (phase, session) in &mut locked {
                if let (Phase::Running(generation), Some(session)) = (&mut **phase, session.as_mut()) {
                    members.push((&mut **generation, session));
                }
            }
            let mut results = pass_together(&mut members).into_iter();
            for ((phase, session), run) in locked.iter_mut().zip(&*runs) {
                outcomes.push(match (&**phase, session.as_ref()) {
                    (Phase::Running(_), Some(session)) => {
                        results.next().flatten().map(|result| run.settle(phase, session, result))
                    }
                    _ => {
                        **phase = Phase::Over;
                        Some(Outcome::Last(Err(EngineError::closed("session"))))
                    }
                });
            }
        }
        let mut back = Vec::new();
        for (run, outcome) in runs.drain(..).zip(outcomes) {
            match outcome {
                Some(outcome) => run.go_on(outcome),
                None => back.push(run),
            }
        }
        if let Some(first) = back.first().cloned() {
            first.cell.put_back(back.into_iter().map(Job::Pass).collect());
        }
    }

    /// What follows a pass: the app gets what it gave, and the next one comes, or rest. No lock is held while the app is
    /// told: it may come back at once, on this very thread.
    fn go_on(self: &Arc<Self>, outcome: Outcome) {
        let (last, goes_on) = match outcome {
            Outcome::More(chunk) => {
                // There is room: a job is only queued while there is.
                chunk.map(|chunk| self.chunks.try_send(Ok(chunk.into())));
                (None, true)
            }
            Outcome::Last(last) => (Some(last), false),
            Outcome::Rest => (None, false),
        };
        let mut scheduled = self.scheduled();
        // A stream that was cancelled meanwhile comes back to roll back, even when nobody pulls.
        if goes_on && (!self.chunks.is_full() || self.cancelled.load(Ordering::Acquire)) {
            drop(scheduled);
            self.post();
            return;
        }
        *scheduled = false;
        drop(scheduled);
        if let Some(last) = last {
            self.end(last);
        }
    }

    /// Advances the response by one pass.
    fn pass(&self) -> Outcome {
        let mut phase = self.phase();
        let mut session = self.cell.lock();
        let Some(session) = session.as_mut() else {
            *phase = Phase::Over;
            return Outcome::Last(Err(EngineError::closed("session")));
        };
        if self.cancelled.load(Ordering::Acquire) {
            if let Phase::Running(mut generation) = std::mem::replace(&mut *phase, Phase::Over) {
                generation.roll_back(session);
            }
            return Outcome::Rest;
        }
        if let Phase::Waiting { prompt, options } = &*phase {
            let started = match prompt {
                Prompt::Message(message) => session.begin(message, &options.into()),
                Prompt::Text(text) => session.begin_text(text, &options.into()),
            };
            match started {
                Ok(generation) => *phase = Phase::Running(Box::new(generation)),
                Err(error) => {
                    *phase = Phase::Over;
                    return Outcome::Last(Err(error.into()));
                }
            }
        }
        let Phase::Running(generation) = &mut *phase else { return Outcome::Rest };
        let result = generation.pass(session);
        self.settle(&mut phase, session, result)
    }

    /// What a pass gave, with the response's state after it.
    fn settle(&self, phase: &mut Phase, session: &Session, result: calora::Result<Progress>) -> Outcome {
        let last = match result {
            Ok(Progress::Computing) => return Outcome::More(None),
            Ok(Progress::Chunk(chunk)) if chunk.finish_reason.is_none() => return Outcome::More(Some(chunk)),
            Ok(Progress::Chunk(chunk)) => {
                self.cell.refresh(session);
                Ok(chunk.into())
            }
            Err(error) => Err(error.into()),
        };
        *phase = Phase::Over;
        Outcome::Last(last)
    }
}

/// A response; dropping it cancels.
#[derive(uniffi::Object)]
pub struct ResponseStream {
    run: Arc<Run>,
}

impl ResponseStream {
    pub(crate) fn new(run: Arc<Run>) -> Self {
        Self { run }
    }
}

#[uniffi::export]
impl ResponseStream {
    /// The next piece of text. The last chunk has the finish reason and the usage; after it comes nothing.
    ///
    /// Nothing is computed before the first call. A failed or cancelled response leaves the session as it was.
    pub async fn next(&self) -> Result<Option<ResponseChunk>> {
        let run = &self.run;
        if run.cancelled.load(Ordering::Acquire) {
            return Err(run.stopped());
        }
        // With chunks waiting, the device is ahead already; a full queue must not grow.
        if run.chunks.is_empty() && !run.is_over() {
            run.schedule();
        }
        let received = run.pulled.recv().await;
        if run.cancelled.load(Ordering::Acquire) {
            return Err(run.stopped());
        }
        match received {
            Some(chunk) => {
                if !run.is_over() {
                    run.schedule(); // there is room again
                }
                chunk.map(Some)
            }
            None => Ok(None),
        }
    }

    /// Stops within one pass of the device; a pending [`Self::next`] fails with `Cancelled` at once (with `Closed` where
    /// its session was closed instead). Twice is fine, and
    /// a response that has ended is not affected.
    pub fn cancel(&self) {
        self.run.cancel();
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        self.run.cancel();
    }
}
