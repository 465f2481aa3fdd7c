//! The beginning of the next prompt, computed before it is asked for.

use super::Session;
use crate::device::Want;
use crate::error::Result;

/// A beginning that is being computed, one pass of the device at a time; the transcript stays as it is.
#[derive(Debug)]
pub struct Prewarming {
    tokens: Vec<u32>,
}

impl Prewarming {
    /// Advances by at most one pass; whether all is computed. `session` is the one that began this.
    pub fn pass(&mut self, session: &mut Session) -> Result<bool> {
        let (tokens, adapters) = (&self.tokens, session.adapters.as_ref());
        let held = session.cache.begin(&session.residency, tokens, adapters, tokens.len())?;
        if held < tokens.len() {
            session.step(tokens, Want::Nothing)?;
            if session.cache.len() < tokens.len() {
                return Ok(false);
            }
        }
        session.put_instructions_aside(tokens);
        Ok(true)
    }
}

impl Session {
    /// Computes the beginning of the next prompt ahead of time, so that the response starts sooner. The transcript stays
    /// as it is; what was computed shows in [`Usage::cached_tokens`](super::Usage::cached_tokens).
    pub fn prewarm(&mut self, prompt_prefix: &str) -> Result<()> {
        let mut prewarming = self.begin_prewarm(prompt_prefix)?;
        while !prewarming.pass(self)? {}
        Ok(())
    }

    /// [`Session::prewarm`] for a caller that advances it itself and holds the session only meanwhile.
    pub fn begin_prewarm(&mut self, prompt_prefix: &str) -> Result<Prewarming> {
        let tokens = self.prompt_tokens(prompt_prefix, false)?;
        self.check_prompt(&tokens)?;
        self.losses = 0;
        self.recall_instructions(&tokens)?;
        Ok(Prewarming { tokens })
    }
}
