//! The KV cache with what is known of its content: which tokens, and under which adapters each was computed.
//!
//! Invariant: `tokens` never names a position whose keys and values are not in the cache, and `runs` never says that one
//! was computed under adapters other than those that were attached in that pass.

use std::sync::Arc;

use super::prefixes::{Prefix, WORTHWHILE};
use super::resident::{AdapterKey, CacheHandle, ResidentAdapter};
use super::shared::Shared;
use crate::device::{Answer, CacheId, Forward, Want};
use crate::error::{Error, Result};

/// A cache on the device and its content.
#[derive(Debug)]
pub(super) struct Cache {
    /// Absent after [`Cache::release`], until it is needed again.
    handle: Option<CacheHandle>,
    positions: usize,
    tokens: Vec<u32>,
    /// The adapters that computed the tokens up to an end, in order.
    runs: Vec<(Arc<AdapterKey>, usize)>,
    /// How many of the first tokens count whatever computed them, because the caller wants it so.
    accepted: usize,
}

pub(super) fn key(adapters: Option<&ResidentAdapter>) -> Arc<AdapterKey> {
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
        Ok(Self { handle, positions, tokens: Vec::new(), runs: Vec::new(), accepted: 0 })
    }

    /// Gives the memory back; whether there was any.
    pub(super) fn release(&mut self) -> bool {
        self.truncate(0);
        self.handle.take().is_some()
    }

    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that can be reused under these adapters.
    pub(super) fn valid(&self, adapters: Option<&ResidentAdapter>) -> &[u32] {
        &self.tokens[..self.until(self.accepted, adapters)]
    }

    /// How many tokens of the cache's beginning were computed under these adapters, and see no others before them.
    pub(super) fn exact(&self, adapters: Option<&ResidentAdapter>) -> usize {
        self.until(0, adapters)
    }

    /// The end of what these adapters computed from `start` on.
    fn until(&self, start: usize, adapters: Option<&ResidentAdapter>) -> usize {
        let key = key(adapters);
        let behind = self.runs.iter().filter(|(_, end)| *end > start);
        behind.take_while(|(run, _)| *run == key).last().map_or(start, |(_, end)| *end)
    }

    /// From now on the first `len` tokens count whatever computed them, and no others do.
    pub(super) fn accept(&mut self, len: usize) {
        self.accepted = len.min(self.len());
    }

    /// How many tokens of the beginning of `tokens` the cache holds, whatever computed them.
    pub(super) fn shares(&self, tokens: &[u32]) -> usize {
        common(&self.tokens, tokens)
    }

    /// How many tokens of the beginning of `tokens` need not be computed, at most `limit`.
    pub(super) fn common(&self, tokens: &[u32], adapters: Option<&ResidentAdapter>, limit: usize) -> usize {
        common(self.valid(adapters), tokens).min(limit)
    }

    /// Prepares to compute `tokens`: what the cache, or else the engine's put-aside beginnings, hold of their beginning is
    /// kept (at most `limit` tokens, which is returned), the rest is forgotten.
    pub(super) fn begin(
        &mut self,
        shared: &Arc<Shared>,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        limit: usize,
    ) -> Result<usize> {
        let kept = self.common(tokens, adapters, limit);
        let limit = limit.min(self.positions);
        match shared.prefixes.longest(&key(adapters), &tokens[..limit.min(tokens.len())]) {
            Some((prefix, len)) if len >= kept + WORTHWHILE => {
                self.truncate(0);
                let cache = self.handle(shared)?;
                shared.device().write_cache(cache, &prefix.bytes[..len * shared.position_bytes])?;
                self.append(&tokens[..len], key(adapters));
                Ok(len)
            }
            _ => {
                self.truncate(kept);
                Ok(kept)
            }
        }
    }

    /// Puts the first `len` tokens aside, as far as they were computed under these adapters alone; nothing where that is
    /// not worth it, was done before, or has no room.
    pub(super) fn put_aside(
        &self,
        shared: &Arc<Shared>,
        adapters: Option<&ResidentAdapter>,
        len: usize,
    ) -> Result<Option<Arc<Prefix>>> {
        let (key, tokens) = (key(adapters), &self.tokens[..len.min(self.exact(adapters))]);
        let size = (tokens.len() * shared.position_bytes) as u64;
        let Some(handle) = self.handle.as_ref().filter(|_| tokens.len() >= WORTHWHILE) else {
            return Ok(None);
        };
        if !shared.prefixes.takes(size) || shared.prefixes.holds(&key, tokens) {
            return Ok(None);
        }
        let bytes = shared.device().read_cache(handle.id(), tokens.len())?;
        let prefix = Prefix { adapters: key, tokens: tokens.to_vec(), bytes };
        Ok(shared.prefixes.put(prefix))
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

    /// Keeps the first `len` tokens.
    pub(super) fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.accepted = self.accepted.min(len);
        let whole = self.runs.iter().take_while(|(_, end)| *end < len).count();
        self.runs.truncate(if len == 0 { 0 } else { whole + 1 });
        if let Some((_, end)) = self.runs.last_mut() {
            *end = len.min(*end);
        }
    }

    /// One pass over `tokens` at the cache's end.
    pub(super) fn extend(
        &mut self,
        shared: &Arc<Shared>,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        want: Want,
    ) -> Result<Answer> {
        let cache = self.handle(shared)?;
        let position = self.tokens.len();
        let tail = adapters.map(ResidentAdapter::tail);
        let answer = shared.forward(&Forward { tokens, position, cache, tail, want })?;
        self.append(tokens, key(adapters));
        Ok(answer)
    }

    fn append(&mut self, tokens: &[u32], key: Arc<AdapterKey>) {
        self.tokens.extend_from_slice(tokens);
        match self.runs.last_mut() {
            Some((run, end)) if *run == key => *end = self.tokens.len(),
            _ => self.runs.push((key, self.tokens.len())),
        }
    }

    fn handle(&mut self, shared: &Arc<Shared>) -> Result<CacheId> {
        match &self.handle {
            Some(handle) => Ok(handle.id()),
            None => Ok(self.handle.insert(CacheHandle::new(shared, self.positions)?).id()),
        }
    }
}

/// How many tokens two texts begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
