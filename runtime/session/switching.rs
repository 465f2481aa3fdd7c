//! Switching a session's task, and what becomes of the keys and values that the old one computed.

use super::Session;
use super::cache::common;
use super::prefixes::WORTHWHILE;
use super::resident::{BoundAdapter, is, list};
use crate::error::Result;

/// What becomes of a conversation's keys and values when a session goes on with other adapters.
///
/// They were computed through the old adapters. *Exact* policies never show them to the new ones: the next response is
/// what a new session with this conversation would give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CachePolicy {
    /// Computed anew with the next response. Exact; costs a prefill of the conversation.
    #[default]
    Recompute,
    /// What the old adapters computed is put aside, and what the new ones had computed of this conversation before comes
    /// back: only what was said since is computed. Exact; costs memory within `EngineOptions::prefix_budget`.
    Restore,
    /// The instructions that the conversation begins with keep their keys and values; the rest is computed anew.
    /// Approximate: the new adapters read instructions as the old ones saw them.
    KeepInstructions,
    /// Everything stays and nothing is computed. Approximate: the new adapters read the conversation as the old ones saw
    /// it. The cheapest, for adapters that differ little.
    Keep,
}

/// What a switch keeps and what it costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchReport {
    /// Tokens of the conversation under the new adapters.
    pub transcript_tokens: usize,
    /// How many of them need not be computed with the next response.
    pub cached_tokens: usize,
    /// How many of those were computed through other adapters; 0 with an exact policy.
    pub inexact_tokens: usize,
    /// Bytes newly put aside for a way back; 0 where the budget has no room for them.
    pub put_aside_bytes: u64,
}

impl SwitchReport {
    /// Whether the next response is what a new session would give.
    pub fn is_exact(&self) -> bool {
        self.inexact_tokens == 0
    }
}

impl Session {
    /// Goes on with other adapters (an empty list detaches). The transcript stays; what the cache holds was computed with
    /// the old ones, so the next response computes it anew, and says so in `Usage::cached_tokens`.
    pub fn switch_to(&mut self, adapters: &[(BoundAdapter, f32)]) -> Result<()> {
        self.adapters = self.residency.get(adapters)?;
        self.cache.accept(0);
        Ok(())
    }

    /// [`Session::switch_to`] with a choice of what becomes of the cache. After an error nothing has changed.
    pub fn switch_with(
        &mut self,
        adapters: &[(BoundAdapter, f32)],
        policy: CachePolicy,
    ) -> Result<SwitchReport> {
        let adapters = self.residency.get(adapters)?;
        let put_aside = match policy {
            CachePolicy::Restore => {
                let aside = || self.cache.put_aside(&self.shared, self.adapters.as_ref(), self.cache.len());
                self.residency.place(aside)?
            }
            _ => None,
        };
        let put_aside_bytes = put_aside.map_or(0, |prefix| prefix.bytes.len() as u64);
        let old = std::mem::replace(&mut self.adapters, adapters);
        match self.take_over(policy) {
            Ok(report) => Ok(SwitchReport { put_aside_bytes, ..report }),
            Err(e) => {
                self.adapters = old;
                Err(e)
            }
        }
    }

    /// Decides what of the cache counts under the adapters that were just attached.
    fn take_over(&mut self, policy: CachePolicy) -> Result<SwitchReport> {
        let transcript = self.transcript()?;
        let accepted = match policy {
            CachePolicy::Recompute | CachePolicy::Restore => 0,
            CachePolicy::Keep => self.cache.len(),
            CachePolicy::KeepInstructions => {
                let len = self.stable(&transcript)?;
                self.cache.shares(&transcript[..len])
            }
        };
        self.cache.accept(accepted);
        let adapters = self.adapters.as_ref();
        let cached = self.cache.common(&transcript, adapters, transcript.len());
        let exact = self.cache.exact(adapters).min(cached);
        let aside = self.shared.prefixes.longest(&list(adapters).key, &transcript);
        Ok(match aside {
            Some((_, len)) if len >= cached + WORTHWHILE => SwitchReport {
                transcript_tokens: transcript.len(),
                cached_tokens: len,
                ..SwitchReport::default()
            },
            _ => SwitchReport {
                transcript_tokens: transcript.len(),
                cached_tokens: cached,
                inexact_tokens: cached - exact,
                ..SwitchReport::default()
            },
        })
    }

    /// The conversation so far in tokens, as the adapters in use would have it spelt.
    fn transcript(&self) -> Result<Vec<u32>> {
        match self.chat_template() {
            Some(_) if !self.messages.is_empty() => self.template_tokens(&self.messages, false),
            _ => Ok(self.tokens.clone()),
        }
    }

    /// How many of the first tokens every conversation with these instructions begins with; 0 without instructions.
    pub(super) fn stable(&mut self, tokens: &[u32]) -> Result<usize> {
        if self.instructions().is_none_or(str::is_empty) {
            return Ok(0);
        }
        let openings = match &self.openings {
            Some((of, openings)) if is(of, self.adapters.as_ref()) => openings,
            _ => {
                // Two conversations that differ from the first letter on.
                let openings = [self.opening_tokens("a", true)?, self.opening_tokens("b", true)?];
                &self.openings.insert((list(self.adapters.as_ref()), openings)).1
            }
        };
        Ok(openings.iter().map(|opening| common(opening, tokens)).min().unwrap_or(0))
    }

    /// Puts the instructions' keys and values aside, once they are computed, for every session that begins with them. What
    /// could not be kept is computed again: no reason to fail.
    pub(super) fn put_instructions_aside(&mut self, tokens: &[u32]) {
        let len = self.stable(tokens);
        let kept = len.and_then(|len| self.cache.put_aside(&self.shared, self.adapters.as_ref(), len));
        match (kept, &self.shared.prefixes.files) {
            (Ok(Some(prefix)), Some(files)) => {
                let (list, device) = (list(self.adapters.as_ref()), self.shared.device_info());
                files.write(&prefix.tokens, &list, &device, &prefix.bytes);
            }
            (Ok(_), _) => {}
            (Err(e), _) => log::warn!("instructions were not put aside: {e}"),
        }
    }

    /// Takes the instructions' keys and values up from their file, if one was kept by an earlier process.
    pub(super) fn recall_instructions(&mut self, tokens: &[u32]) -> Result<()> {
        if self.shared.prefixes.files.is_some() {
            let len = self.stable(tokens)?;
            let (list, device) = (list(self.adapters.as_ref()), self.shared.device_info());
            self.shared.prefixes.recall(&tokens[..len], &list, &device);
        }
        Ok(())
    }
}
