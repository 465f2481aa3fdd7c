//! The KV cache with what is known of its content: which tokens, under which adapters.
//!
//! Invariant: `tokens` never names a position whose keys and values were not computed, in order, under `adapters`.

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
        Ok(Self { handle, positions, tokens: Vec::new(), adapters: Arc::default() })
    }

    /// Gives the memory back; whether there was any.
    pub(super) fn release(&mut self) -> bool {
        self.tokens.clear();
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
    ) -> Result<Answer> {
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
        self.tokens.truncate(len);
    }

    /// One pass over `tokens` at the cache's end.
    pub(super) fn extend(
        &mut self,
        shared: &Arc<Shared>,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        want: Want,
    ) -> Result<Answer> {
        let cache = match &self.handle {
            Some(handle) => handle.id(),
            None => self.handle.insert(CacheHandle::new(shared, self.positions)?).id(),
        };
        let position = self.tokens.len();
        let tail = adapters.map(ResidentAdapter::tail);
        let answer = shared.forward(&Forward { tokens, position, cache, tail, want })?;
        self.tokens.extend_from_slice(tokens);
        Ok(answer)
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }
}
