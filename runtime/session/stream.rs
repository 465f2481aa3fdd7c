//! One response as it is pulled: a [`Generation`] with its session, until it ends or is dropped.
//!
//! Invariant: between two passes the cancel flag is read; a stream that does not reach its last chunk rolls back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Session;
use super::generation::{Generation, Progress};
use super::options::{Response, ResponseChunk};
use crate::error::{Error, Result};

/// Cancels a response from any thread; cloning gives another handle to the same one.
#[derive(Clone, Debug, Default)]
pub struct CancelHandle(Arc<AtomicBool>);

impl CancelHandle {
    /// Asks the response to stop: the pass in progress is the last. [`ResponseStream::next`] then gives
    /// [`Error::Cancelled`]. A response that has ended is not affected.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A response in progress; dropping it cancels.
#[derive(Debug)]
pub struct ResponseStream<'s> {
    session: &'s mut Session,
    generation: Generation,
    cancel: CancelHandle,
}

impl<'s> ResponseStream<'s> {
    pub(super) fn new(session: &'s mut Session, generation: Generation) -> Self {
        Self { session, generation, cancel: CancelHandle::default() }
    }

    /// A handle that cancels this response from another thread.
    pub fn cancel_handle(&self) -> CancelHandle {
        self.cancel.clone()
    }

    /// The next piece of text; the last chunk carries the finish reason and the usage, then comes `None`.
    ///
    /// After an error (of which [`Error::Cancelled`] is one) the session is as it was before the request.
    #[allow(clippy::should_implement_trait)] // an Iterator could not give the error once and then end by itself
    pub fn next(&mut self) -> Result<Option<ResponseChunk>> {
        while !self.generation.is_over() {
            if self.cancel.is_cancelled() {
                self.generation.roll_back(self.session);
                return Err(Error::Cancelled);
            }
            if let Progress::Chunk(chunk) = self.generation.pass(self.session)? {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }

    /// The rest of the response at once.
    pub fn collect(mut self) -> Result<Response> {
        let mut text = String::new();
        while let Some(chunk) = self.next()? {
            text += &chunk.text;
            if let (Some(finish_reason), Some(usage)) = (chunk.finish_reason, chunk.usage) {
                return Ok(Response { text, tokens: self.output().to_vec(), finish_reason, usage });
            }
        }
        // Only reached on a stream that had given its last chunk already.
        Err(Error::Cancelled)
    }

    /// The tokens generated so far.
    pub fn output(&self) -> &[u32] {
        self.generation.output()
    }
}

impl Drop for ResponseStream<'_> {
    fn drop(&mut self) {
        self.generation.roll_back(self.session);
    }
}
