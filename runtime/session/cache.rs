//! The KV cache with what is known of its content: which tokens, in which passes, and under which adapters.
//!
//! Invariant: `tokens` and `passes` are what the cache holds or, after its device was lost, is to hold again: the journal.
//! Its passes are computed again, one a call and under their own adapters, before anything new.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::prefixes::{Prefix, WORTHWHILE};
use super::residency::Residency;
use super::resident::{AdapterList, CacheHandle, ResidentAdapter, is, list};
use super::seat::Placed;
use super::shared::Shared;
use super::slot::Slot;
use crate::device::{Answer, CacheId, Forward, TailId, Want};
use crate::error::{Error, Result};

/// A cache on the device and its content.
#[derive(Debug)]
pub(super) struct Cache {
    /// Absent after [`Cache::release`], or when the engine took it back, until it is needed again.
    handle: Option<CacheHandle>,
    positions: usize,
    tokens: Vec<u32>,
    /// The last of them ends where `tokens` do.
    passes: Vec<Pass>,
    /// How many tokens the handle's cache holds: all of them, unless the device was lost.
    held: usize,
    /// How many of the first tokens count whatever computed them, because the caller wants it so.
    accepted: usize,
    /// Whether a response is in progress.
    responding: bool,
}

/// Tokens that were computed at once.
#[derive(Debug)]
struct Pass {
    adapters: Arc<AdapterList>,
    end: usize,
}

/// Where a pass at a cache's end computes.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    pub(super) cache: CacheId,
    /// What acts, with its scales.
    pub(super) tail: Option<(TailId, Arc<AdapterList>)>,
    pub(super) position: usize,
    pub(super) epoch: u64,
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
            passes: Vec::new(),
            held: 0,
            accepted: 0,
            responding: false,
        })
    }

    /// Gives the memory back; whether there was any.
    pub(super) fn release(&mut self) -> bool {
        self.truncate(0);
        self.handle.take().is_some_and(|handle| handle.is_current())
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
        let behind = &self.passes[self.passes.partition_point(|pass| pass.end <= start)..];
        behind.iter().take_while(|pass| is(&pass.adapters, adapters)).last().map_or(start, |pass| pass.end)
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
        residency: &Residency,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        limit: usize,
    ) -> Result<usize> {
        let (kept, list) = (self.common(tokens, adapters, limit), list(adapters));
        let beginning = &tokens[..limit.min(self.positions).min(tokens.len())];
        let len = match residency.shared().prefixes.longest(&list.key, beginning) {
            Some((prefix, len)) if len >= kept + WORTHWHILE => {
                residency.place(|| self.put_down(residency.shared(), &prefix, len, &list))?;
                len
            }
            _ => kept,
        };
        self.truncate(len);
        Ok(len)
    }

    /// Replaces the cache's content by the first `len` tokens of a put-aside beginning.
    fn put_down(
        &mut self,
        shared: &Arc<Shared>,
        prefix: &Prefix,
        len: usize,
        list: &Arc<AdapterList>,
    ) -> Result<()> {
        self.truncate(0);
        let (slot, bytes) = (self.place(shared)?, &prefix.bytes[..len * shared.position_bytes]);
        let Placed { id, epoch } = slot.placed;
        let written = match slot.enter() {
            Some(_in_use) => shared.call(epoch, |device| device.write_cache(id, bytes))?,
            None => None,
        };
        for chunk in prefix.tokens[..len].chunks(shared.prefill_chunk) {
            self.note(chunk, list.clone());
        }
        // Where the cache has just gone, the journal says what to compute.
        self.held = if written.is_some() { len } else { 0 };
        Ok(())
    }

    /// Puts the first `len` tokens aside, as far as they were computed under these adapters alone; nothing where that is
    /// not worth it, was done before, or has no room.
    pub(super) fn put_aside(
        &self,
        shared: &Arc<Shared>,
        adapters: Option<&ResidentAdapter>,
        len: usize,
    ) -> Result<Option<Arc<Prefix>>> {
        let tokens = &self.tokens[..len.min(self.exact(adapters)).min(self.held)];
        let (key, size) = (&list(adapters).key, (tokens.len() * shared.position_bytes) as u64);
        let Some(handle) = self.handle.as_ref().filter(|handle| handle.is_current()) else { return Ok(None) };
        if tokens.len() < WORTHWHILE || !shared.prefixes.takes(size) || shared.prefixes.holds(key, tokens) {
            return Ok(None);
        }
        let Placed { id, epoch } = handle.slot().placed;
        let Some(_in_use) = handle.slot().enter() else { return Ok(None) };
        let bytes = shared.call(epoch, |device| device.read_cache(id, tokens.len()))?;
        let Some(bytes) = bytes else { return Ok(None) };
        Ok(shared.prefixes.put(Prefix { adapters: key.clone(), tokens: tokens.to_vec(), bytes }))
    }

    /// Computes the next chunk of `tokens`, of which the cache holds the beginning.
    pub(super) fn step(
        &mut self,
        residency: &Residency,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        want: Want,
    ) -> Result<Option<Answer>> {
        let from = self.tokens.len();
        let to = tokens.len().min(from + residency.shared().prefill_chunk);
        self.extend(residency, &tokens[from..to], adapters, want)
    }

    /// Keeps the first `len` tokens; cuts the journal in the middle of a pass if need be.
    pub(super) fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.accepted = self.accepted.min(len);
        self.held = self.held.min(len);
        let whole = self.passes.partition_point(|pass| pass.end < len);
        self.passes.truncate(if len == 0 { 0 } else { whole + 1 });
        if let Some(last) = self.passes.last_mut() {
            last.end = last.end.min(len);
        }
    }

    /// The first pass of the journal that the device's cache lacks.
    fn missing(&self) -> Option<(Range<usize>, &Arc<AdapterList>)> {
        let next = self.passes.partition_point(|pass| pass.end <= self.held);
        self.passes.get(next).map(|pass| (self.held..pass.end, &pass.adapters))
    }

    /// One pass over `tokens` at the cache's end; `None` when it was not this pass's turn, so that it is to be tried again:
    /// a pass of the journal was computed instead, or the cache has just gone.
    pub(super) fn extend(
        &mut self,
        residency: &Residency,
        tokens: &[u32],
        adapters: Option<&ResidentAdapter>,
        want: Want,
    ) -> Result<Option<Answer>> {
        let shared = residency.shared();
        let slot = self.place(shared)?;
        let cache = slot.placed;
        let Some(_in_use) = slot.enter() else { return Ok(None) };
        if let Some((range, list)) = self.missing() {
            let adapters = residency.get(&list.items)?;
            let tokens = &self.tokens[range.clone()];
            let done = pass(shared, cache, (tokens, range.start), adapters.as_ref(), Want::Nothing)?;
            self.held = if done.is_some() { range.end } else { 0 };
            return Ok(None);
        }
        let answer = pass(shared, cache, (tokens, self.tokens.len()), adapters, want)?;
        if answer.is_some() {
            self.append(tokens, adapters);
        }
        Ok(answer)
    }

    /// Where a pass under these adapters would compute, if nothing has to be placed or computed again before. Holds while
    /// the session is responding, when the engine does not take its cache back.
    pub(super) fn ready(&self, adapters: Option<&ResidentAdapter>) -> Option<Ready> {
        let handle = self.handle.as_ref().filter(|handle| handle.is_current())?;
        let Placed { id: cache, epoch } = handle.slot().placed;
        let tail = match adapters.filter(|adapters| adapters.acts()) {
            Some(adapters) => {
                let tail = adapters.placed().filter(|tail| tail.epoch == epoch)?;
                Some((tail.id, adapters.list.clone()))
            }
            None => None,
        };
        (self.held == self.len()).then_some(Ready { cache, tail, position: self.len(), epoch })
    }

    /// Takes down what a pass at the cache's end has computed.
    pub(super) fn append(&mut self, tokens: &[u32], adapters: Option<&ResidentAdapter>) {
        let last = self.passes.last().map(|pass| pass.adapters.clone());
        let list = last.filter(|last| is(last, adapters)).unwrap_or_else(|| list(adapters));
        self.note(tokens, list);
        self.held = self.tokens.len();
    }

    fn note(&mut self, tokens: &[u32], adapters: Arc<AdapterList>) {
        self.tokens.extend_from_slice(tokens);
        self.passes.push(Pass { adapters, end: self.tokens.len() });
    }

    /// The cache on the device that computes now; a new one holds nothing.
    fn place(&mut self, shared: &Arc<Shared>) -> Result<Arc<Slot>> {
        self.handle = self.handle.take().filter(CacheHandle::is_current);
        let handle = match &self.handle {
            Some(handle) => handle,
            None => {
                self.held = 0;
                self.handle.insert(CacheHandle::new(shared, self.positions)?)
            }
        };
        handle.slot().responding.store(self.responding, Ordering::Release);
        Ok(handle.slot().clone())
    }

    /// Says whether a response is in progress, during which the engine does not take the cache back.
    pub(super) fn set_responding(&mut self, responding: bool) {
        self.responding = responding;
        if let Some(handle) = &self.handle {
            handle.slot().responding.store(responding, Ordering::Release);
        }
    }
}

/// One pass over tokens at a position; `None` if the device was lost since.
fn pass(
    shared: &Shared,
    cache: Placed<CacheId>,
    (tokens, position): (&[u32], usize),
    adapters: Option<&ResidentAdapter>,
    want: Want,
) -> Result<Option<Answer>> {
    let acting = adapters.map(ResidentAdapter::acting).transpose()?.flatten();
    if acting.is_some_and(|(tail, _)| tail.epoch != cache.epoch) {
        return Ok(None);
    }
    let (tail, scales) = acting.map_or((None, &[][..]), |(tail, scales)| (Some(tail.id), scales));
    let pass = Forward { tokens, position, cache: cache.id, tail, scales, want };
    Ok(shared.forward(cache.epoch, &[pass])?.and_then(|answers| answers.into_iter().next()))
}

/// How many tokens two texts begin with alike.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
