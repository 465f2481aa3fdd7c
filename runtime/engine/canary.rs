//! Probes of adapters on the engine's own device: proof that an attached adapter acts.

use super::Engine;
use crate::adapter::AdapterOptions;
use crate::adapter::canary::{Canary, CanaryReport, LONGEST_PROMPT};
use crate::device::Activations;
use crate::error::{Error, Result};
use crate::session::{BoundAdapter, SessionOptions};

/// Tokens of the prompt for an adapter that brings none.
const OWN_PROMPT: usize = 8;

impl Engine {
    /// Runs the adapter's recorded probe with and without it and compares: two passes of a few tokens, in a cache that is
    /// freed after. An adapter without a record is only seen to change the logits, or not.
    ///
    /// The adapter is resident afterwards, within the budget. [`CanaryReport::require`] makes an error of a bad verdict.
    pub fn check_canary(&self, adapter: &BoundAdapter) -> Result<CanaryReport> {
        let recorded = adapter.canary();
        let vocab = self.info.shape.vocab;
        if let Some(id) = recorded.and_then(|canary| canary.ids().find(|id| *id as usize >= vocab)) {
            let reason =
                format!("its probe has token {id}, this model {vocab} tokens; it was made for another");
            return Err(Error::CanaryFailed { adapter: adapter.name().to_owned(), reason });
        }
        let own = || (0..OWN_PROMPT).map(|i| (i * vocab / OWN_PROMPT) as u32).collect();
        let prompt: Vec<u32> = recorded.map_or_else(own, |canary| canary.prompt.clone());
        let (without, with) = self.probe(adapter, &prompt)?;
        Ok(CanaryReport::judge(adapter.name(), recorded, &self.info.scheme, (&without, &with)))
    }

    /// Refuses an adapter that does not act as it should, where the options ask for that.
    pub fn prove(&self, adapter: &BoundAdapter, options: &AdapterOptions) -> Result<()> {
        if options.canary { self.check_canary(adapter)?.require() } else { Ok(()) }
    }

    /// Records what an adapter does after a prompt of 1 to 64 tokens, to be stored in its file by
    /// [`crate::adapter::protect`]. Refuses an adapter that does nothing.
    pub fn record_canary(&self, adapter: &BoundAdapter, prompt: &[u32]) -> Result<Canary> {
        if prompt.len() > LONGEST_PROMPT {
            let reason = format!("a probe has at most {LONGEST_PROMPT} tokens");
            return Err(Error::option("canary prompt", format!("({} tokens)", prompt.len()), reason));
        }
        let (without, with) = self.probe(adapter, prompt)?;
        CanaryReport::judge(adapter.name(), None, &self.info.scheme, (&without, &with)).require()?;
        let activations = match self.device_info().activations {
            Activations::F32 => "f32",
            Activations::Int8 => "int8",
        };
        Ok(Canary::record(prompt, (&without, &with), &self.info.scheme, activations))
    }

    /// (vocabulary) logits after the last token of a prompt, without and with an adapter.
    fn probe(&self, adapter: &BoundAdapter, prompt: &[u32]) -> Result<(Vec<f32>, Vec<f32>)> {
        if prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let context_size = Some(prompt.len());
        let mut session = self.session(SessionOptions { context_size, ..SessionOptions::default() })?;
        let mut last = |adapters: &[(BoundAdapter, f32)]| {
            session.switch_to(adapters)?;
            let mut logits = Vec::new();
            session.visit_logits(prompt, prompt.len() - 1, |_, row| logits = row.to_vec())?;
            Ok::<_, Error>(logits)
        };
        Ok((last(&[])?, last(&[(adapter.clone(), 1.0)])?))
    }
}
