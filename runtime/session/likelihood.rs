//! How likely given texts are: what classification and perplexity are made of.

use super::Session;
use crate::error::{Error, Result};

/// `log p(token)` in nats under a row of logits.
pub fn log_likelihood(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let sum: f64 = logits.iter().map(|v| f64::from(v - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - sum.ln()
}

/// Likelihoods that are being computed, one pass of the device at a time; the transcript stays as it is.
#[derive(Debug)]
pub struct Scoring {
    /// The prompt, which is put aside in the end where it begins with instructions.
    opened: Vec<u32>,
    /// What is scored, and the first token of each that counts.
    texts: Vec<(Vec<u32>, usize)>,
    /// Of those that are done.
    scores: Vec<f64>,
    /// Of the one that is not: the sum so far and the position whose logits come next.
    sum: f64,
    next: usize,
}

impl Scoring {
    fn new(opened: Vec<u32>, texts: Vec<(Vec<u32>, usize)>) -> Self {
        Self { opened, texts, scores: Vec::new(), sum: 0.0, next: 0 }
    }

    /// Tokens of the prompt with all that stands before it and what opens the answer.
    pub(crate) fn prompt_len(&self) -> usize {
        self.opened.len()
    }

    /// Advances by at most one pass; the likelihoods in nats, in the order given, once all are computed. `session` is the
    /// one that began this.
    pub fn pass(&mut self, session: &mut Session) -> Result<Option<Vec<f64>>> {
        self.pass_with(session, &mut |_| {})
    }

    /// [`Scoring::pass`]; the logits after the prompt are shown as they are computed.
    pub(crate) fn pass_with(
        &mut self,
        session: &mut Session,
        after_prompt: &mut impl FnMut(&[f32]),
    ) -> Result<Option<Vec<f64>>> {
        if let Some((tokens, first)) = self.texts.get(self.scores.len()) {
            let first = (*first).max(1);
            if tokens.len() > first {
                if self.next == 0 {
                    session.check_prompt(tokens)?;
                    session.losses = 0;
                }
                let (from, sum, is_first) = (self.next.max(first - 1), &mut self.sum, self.scores.is_empty());
                self.next = session.visit_some(tokens, from, |t, logits| {
                    if is_first && t == first - 1 {
                        after_prompt(logits);
                    }
                    if let Some(next) = tokens.get(t + 1) {
                        *sum += log_likelihood(logits, *next);
                    }
                })?;
                if self.next < tokens.len() {
                    return Ok(None);
                }
            }
            self.scores.push(std::mem::take(&mut self.sum));
            self.next = 0;
        }
        if self.scores.len() < self.texts.len() {
            return Ok(None);
        }
        session.put_instructions_aside(&self.opened);
        Ok(Some(std::mem::take(&mut self.scores)))
    }
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
        let mut scoring = self.begin_likelihoods(prompt, choices)?;
        loop {
            if let Some(scores) = scoring.pass(self)? {
                return Ok(scores);
            }
        }
    }

    /// [`Session::likelihoods`] for a caller that advances it itself and holds the session only meanwhile.
    pub fn begin_likelihoods(&mut self, prompt: &str, choices: &[String]) -> Result<Scoring> {
        if choices.is_empty() {
            return Err(Error::option("choices", "[]", "give at least one"));
        }
        let opened = self.prompt_tokens(prompt, true)?;
        let joined = self.chat_template().is_none();
        self.recall_instructions(&opened)?;
        let texts = choices
            .iter()
            .map(|choice| {
                let tokens = if joined {
                    // A token may span the border.
                    self.prompt_tokens(&format!("{prompt}{choice}"), true)?
                } else {
                    [opened.as_slice(), &self.shared.tokenizer()?.encode_plain(choice)?].concat()
                };
                Ok((tokens, opened.len()))
            })
            .collect::<Result<_>>()?;
        Ok(Scoring::new(opened, texts))
    }

    /// Tokens of a prompt with all around it, and the logits after it; the transcript stays as it is.
    pub(crate) fn logits_after(&mut self, prompt: &str) -> Result<(usize, Vec<f32>)> {
        let tokens = self.prompt_tokens(prompt, true)?;
        self.check_prompt(&tokens)?;
        let mut last = Vec::new();
        self.visit_logits(&tokens, tokens.len() - 1, |_, logits| last = logits.to_vec())?;
        Ok((tokens.len(), last))
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
