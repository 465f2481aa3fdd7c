//! The KV cache with what is known of its content: which tokens, under which adapters.
//!
//! Invariant: `tokens` never names a position whose keys and values were not computed, in order, under `adapters`. It is
//! also the journal: after a loss of the device the same passes are computed again, one a call, before anything new.

use std::ops::Range;
use std::sync::Arc;

use super::resident::{AdapterKey, CacheHandle, ResidentAdapter};
use super::shared::Shared;
use crate::device::{Answer, Forward, Want};
use crate::error::{Error, Result};

/// A cache on the device and its content.
#[derive(Debug)]
pub(super) struct Cache {
    /// Absent after [`Cache::release`], until it is needed again.
    handle: Option<CacheHandle>,
    positions: usize,
    tokens: Vec<u32>,
    /// Where each pass ended; the last of them is the length of `tokens`.
    ends: Vec<usize>,
    /// How many tokens the handle's cache holds: all of them, unless the device was lost.
    held: usize,
    /// Keys and values were computed through these.
    adapters: Arc<AdapterKey>,
}

fn key(adapters: Option<&ResidentAdapter>) -> Arc<AdapterKey> {
    adapters.map(ResidentAdapter::key).unwrap_or_default()
}

impl Cache {
    pub(super) fn new(shared: &Arc<Shared>, positions: usize) -> Result<Self> {
        if positions == 0 {
            return Err(Error::option("context_size", 0, "must be at least 1"));
        }
        let longest = shared.model.recipe.shape.context;
        if positions > longest {
            let reason = format!("the model was made for at most {longest} positions");
            return Err(Error::option("context_size", positions, reason));
        }
        let handle = Some(CacheHandle::new(shared, positions)?);
        Ok(Self {
            handle,
            positions,
            tokens: Vec::new(),
            ends: Vec::new(),
            held: 0,
            adapters: Arc::default(),
        })
    }

    /// Gives the memory back; whether there was any.
    pub(super) fn release(&mut self) -> bool {
        self.forget(0);
        self.handle.take().is_some()
    }

    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    /// Tokens that can be reused under these adapters.
    pub(super) fn valid(&self, adapters: Option<&ResidentAdapter>) -> &[u32] {
        if self.adapters == key(adapters) { &self.tokens } else { &[] }
    }

    /// Prepares to compute `tokens`: what the cache holds of their beginning is kept (at most `limit` tokens), the rest is
    /// forgotten.
    pub(super) fn begin(&mut self, tokens: &[u32], adapters: Option<&ResidentAdapter>, limit: usize) {
        let common = self.common(tokens, adapters, limit);
        self.truncate(common, adapters);
    }

    /// Computes the next chunk of `tokens`, of which the cache holds the beginning.
    pub(super) fn step(
        &mut self,
        shared: &Arc<Shared>,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        want: Want,
    ) -> Result<Option<Answer>> {
        let from = self.tokens.len();
        let to = tokens.len().min(from + shared.prefill_chunk);
        self.extend(shared, &tokens[from..to], adapters, want)
    }

    /// How many tokens of the beginning of `tokens` need not be computed, at most `limit`.
    pub(super) fn common(&self, tokens: &[u32], adapters: Option<&ResidentAdapter>, limit: usize) -> usize {
        let valid = self.valid(adapters);
        valid.iter().zip(tokens).take_while(|(a, b)| a == b).count().min(limit)
    }

    /// Keeps the first `len` tokens, which were computed under `adapters`.
    pub(super) fn truncate(&mut self, len: usize, adapters: Option<&ResidentAdapter>) {
        self.adapters = key(adapters);
        self.forget(len);
    }

    /// Cuts the journal, in the middle of a pass if need be.
    fn forget(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.held = self.held.min(len);
        self.ends.truncate(self.ends.partition_point(|end| *end < len));
        if self.ends.last().copied().unwrap_or(0) < self.tokens.len() {
            self.ends.push(self.tokens.len());
        }
    }

    /// The first pass of the journal that the device's cache lacks.
    fn missing(&self) -> Option<Range<usize>> {
        let next = self.ends.partition_point(|end| *end <= self.held);
        self.ends.get(next).map(|end| self.held..*end)
    }

    /// One pass over `tokens` at the cache's end; `None` when it was not this pass's turn, so that it is to be tried again:
    /// a pass of the journal was computed instead, or another session has just lost the device.
    pub(super) fn extend(
        &mut self,
        shared: &Arc<Shared>,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        want: Want,
    ) -> Result<Option<Answer>> {
        let tail = adapters.map(ResidentAdapter::tail).transpose()?;
        self.handle = self.handle.take().filter(CacheHandle::is_current);
        let cache = match &self.handle {
            Some(handle) => handle.placed(),
            None => {
                self.held = 0;
                self.handle.insert(CacheHandle::new(shared, self.positions)?).placed()
            }
        };
        if tail.is_some_and(|tail| tail.epoch != cache.epoch) {
            return Ok(None);
        }
        let tail = tail.map(|tail| tail.id);
        let pass = |tokens, position, want| {
            shared.forward(cache.epoch, &Forward { tokens, position, cache: cache.id, tail, want })
        };
        if let Some(missing) = self.missing() {
            let done = pass(&self.tokens[missing.clone()], missing.start, Want::Nothing)?;
            self.held = if done.is_some() { missing.end } else { 0 };
            return Ok(None);
        }
        let answer = pass(tokens, self.tokens.len(), want)?;
        if answer.is_some() {
            self.tokens.extend_from_slice(tokens);
            self.held = self.tokens.len();
            self.ends.push(self.held);
        }
        Ok(answer)
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}
