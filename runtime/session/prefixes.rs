//! Beginnings of conversations that were computed before: their keys and values in ordinary memory, within a budget of
//! bytes, the least recently used going first.
//!
//! They make a task's instructions cost their computation once, and bring a conversation back to the task that held it.
//! Invariant: an entry was computed under its adapters alone, so that using it gives what computing it again would.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::common;
use super::prefix_files::PrefixFiles;
use super::resident::{AdapterKey, AdapterList};
use crate::device::DeviceInfo;

/// Bytes of put-aside beginnings, unless told otherwise.
pub(crate) const DEFAULT_BUDGET: u64 = 32 << 20;

/// Fewer tokens than this are not worth a copy.
pub(crate) const WORTHWHILE: usize = 16;

/// One beginning.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) adapters: AdapterKey,
    pub(crate) tokens: Vec<u32>,
    /// [`crate::device::position_bytes`] for each token.
    pub(crate) bytes: Vec<u8>,
}

/// The beginnings of one engine.
#[derive(Debug)]
pub(crate) struct Prefixes {
    budget: u64,
    /// Where beginnings outlive the process, if anywhere.
    pub(crate) files: Option<PrefixFiles>,
    /// The least recently used first.
    entries: Mutex<VecDeque<Arc<Prefix>>>,
}

impl Prefixes {
    pub(crate) fn new(budget: u64, files: Option<PrefixFiles>) -> Self {
        Self { budget, files, entries: Mutex::default() }
    }

    /// Whether an entry of so many bytes is kept at all.
    pub(crate) fn takes(&self, bytes: u64) -> bool {
        bytes <= self.budget
    }

    /// The entry of these adapters that has most of its beginning in common with `tokens`, and how many tokens that are.
    pub(crate) fn longest(&self, adapters: &AdapterKey, tokens: &[u32]) -> Option<(Arc<Prefix>, usize)> {
        let mut entries = self.lock();
        let mine = entries.iter().enumerate().filter(|(_, entry)| entry.adapters == *adapters);
        let (index, len) =
            mine.map(|(i, entry)| (i, common(&entry.tokens, tokens))).max_by_key(|(_, n)| *n)?;
        if len == 0 {
            return None;
        }
        let entry = entries.remove(index)?;
        entries.push_back(entry.clone());
        Some((entry, len))
    }

    /// Whether all of `tokens` are the beginning of an entry of these adapters.
    pub(crate) fn holds(&self, adapters: &AdapterKey, tokens: &[u32]) -> bool {
        self.lock().iter().any(|entry| entry.adapters == *adapters && entry.tokens.starts_with(tokens))
    }

    /// Keeps an entry, in the place of those that are its own beginning, unless it is too large.
    pub(crate) fn put(&self, prefix: Prefix) -> Option<Arc<Prefix>> {
        if !self.takes(prefix.bytes.len() as u64) {
            return None;
        }
        let prefix = Arc::new(prefix);
        let mut entries = self.lock();
        entries.retain(|old| old.adapters != prefix.adapters || !prefix.tokens.starts_with(&old.tokens));
        entries.push_back(prefix.clone());
        let mut total = sum(&entries);
        while total > self.budget
            && let Some(oldest) = entries.pop_front()
        {
            total -= oldest.bytes.len() as u64;
        }
        Some(prefix)
    }

    /// Takes up from a file what is not in memory.
    pub(crate) fn recall(&self, tokens: &[u32], list: &AdapterList, device: &DeviceInfo) {
        if tokens.len() < WORTHWHILE || self.holds(&list.key, tokens) {
            return;
        }
        if let Some(bytes) = self.files.as_ref().and_then(|files| files.read(tokens, list, device)) {
            self.put(Prefix { adapters: list.key.clone(), tokens: tokens.to_vec(), bytes });
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        sum(&self.lock())
    }

    /// Forgets all that is in memory; how many bytes that were.
    pub(crate) fn clear(&self) -> u64 {
        let entries = std::mem::take(&mut *self.lock());
        sum(&entries)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Arc<Prefix>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum(entries: &VecDeque<Arc<Prefix>>) -> u64 {
    entries.iter().map(|entry| entry.bytes.len() as u64).sum()
}
