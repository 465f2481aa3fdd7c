//! How likely given texts are: what classification and perplexity are made of.

use super::Session;
use crate::error::{Error, Result};

/// `log p(token)` in nats under a row of logits.
pub fn log_likelihood(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let sum: f64 = logits.iter().map(|v| f64::from(v - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - sum.ln()
}

impl Session {
    /// `Σ log p(token | all before)` over `tokens[first..]`, in nats; the first token of all has no probability.
    pub fn log_likelihood(&mut self, tokens: &[u32], first: usize) -> Result<f64> {
        let first = first.max(1);
        if tokens.len() <= first {
            return Ok(0.0);
        }
        let mut sum = 0.0;
        self.visit_logits(tokens, first - 1, |t, logits| {
            if let Some(next) = tokens.get(t + 1) {
                sum += log_likelihood(logits, *next);
            }
        })?;
        Ok(sum)
    }

    /// How likely each choice is as the answer to a prompt, in nats, in the order given. The transcript stays as it is; the
    /// common beginning is computed once.
    ///
    /// With a chat template the prompt is the user's next message and a choice the beginning of the answer; without one
    /// both are one plain text, as in training data.
    pub fn likelihoods(&mut self, prompt: &str, choices: &[String]) -> Result<Vec<f64>> {
        self.likelihoods_with(prompt, choices, |_| {}, || Ok(()))
    }

    /// [`Session::likelihoods`] that shows the logits after the prompt, once, and asks before each choice whether to go on.
    pub(crate) fn likelihoods_with(
        &mut self,
        prompt: &str,
        choices: &[String],
        mut after_prompt: impl FnMut(&[f32]),
        go_on: impl Fn() -> Result<()>,
    ) -> Result<Vec<f64>> {
        if choices.is_empty() {
            return Err(Error::option("choices", "[]", "give at least one"));
        }
        let opened = self.prompt_tokens(prompt, true)?;
        let joined = self.chat_template().is_none();
        self.recall_instructions(&opened)?;
        let mut scores = Vec::with_capacity(choices.len());
        for (i, choice) in choices.iter().enumerate() {
            go_on()?;
            let tokens = if joined {
                // A token may span the border.
                self.prompt_tokens(&format!("{prompt}{choice}"), true)?
            } else {
                [opened.as_slice(), &self.shared.tokenizer()?.encode_plain(choice)?].concat()
            };
            let first = opened.len().max(1);
            let mut sum = 0.0;
            if tokens.len() > first {
                self.visit_logits(&tokens, first - 1, |t, logits| {
                    if i == 0 && t == first - 1 {
                        after_prompt(logits);
                    }
                    if let Some(next) = tokens.get(t + 1) {
                        sum += log_likelihood(logits, *next);
                    }
                })?;
            }
            scores.push(sum);
        }
        self.put_instructions_aside(&opened);
        Ok(scores)
    }

    /// Tokens of a prompt with all that stands before it and what opens the answer.
    pub(crate) fn prompt_len(&self, prompt: &str) -> Result<usize> {
        Ok(self.prompt_tokens(prompt, true)?.len())
    }

    /// Logits after a prompt; the transcript stays as it is.
    pub(crate) fn logits_after(&mut self, prompt: &str) -> Result<Vec<f32>> {
        let tokens = self.prompt_tokens(prompt, true)?;
        self.check_prompt(&tokens)?;
        let mut last = Vec::new();
        self.visit_logits(&tokens, tokens.len() - 1, |_, logits| last = logits.to_vec())?;
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::log_likelihood;

    #[test]
    fn likelihoods_add_up_to_one() {
        let logits = [1.0, -2.0, 3.5, 1000.0 - 997.0];
        let sum: f64 = (0..4).map(|token| log_likelihood(&logits, token).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12);
        assert!((log_likelihood(&[0.0, 0.0], 1) + std::f64::consts::LN_2).abs() < 1e-12);
    }
}
