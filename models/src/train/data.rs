//! Rows as token ids, and the order in which they are seen.

use std::path::Path;

use anyhow::{Context, Result, bail};
use calora::text::Tokenizer;

use crate::rows::Row;

/// One sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, BOS included where the tokenizer adds one.
    pub ids: Vec<u32>,
    /// Position of the first token that is predicted and counted in the loss; all behind it are, too. At least 1.
    pub first: usize,
}

impl Example {
    /// Tokens that the model reads: all but the last, which is only predicted.
    pub fn inputs(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }

    /// How many tokens count in the loss.
    pub fn counted(&self) -> usize {
        self.ids.len() - self.first
    }
}

/// Turns rows into examples.
#[derive(Clone, Copy)]
pub struct Encoder<'a> {
    /// The model's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The longest example in tokens.
    pub max_length: usize,
    /// The model's vocabulary.
    pub vocab: usize,
}

impl Encoder<'_> {
    /// A prompt and what should follow it. The two are tokenised as one text where that leaves the prompt's tokens as
    /// they are, which is how choices are scored; else apart.
    pub fn pair(&self, prompt: &str, answer: &str, end: bool) -> Result<Example> {
        let front = self.tokenizer.encode(prompt)?;
        let joined = self.tokenizer.encode(&format!("{prompt}{answer}"))?;
        let mut ids = if joined.len() > front.len() && joined.starts_with(&front) {
            joined
        } else {
            [front.as_slice(), &self.tokenizer.encode_plain(answer)?].concat()
        };
        // A completion may spell its own end of turn; else the model learns to stop by EOS.
        if end
            && let Some(eos) = self.tokenizer.eos()
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        Ok(Example { first: front.len().max(1), ids })
    }

    /// The examples of a row for training: the completion, the right choice, or the text in windows.
    pub fn examples(&self, row: &Row) -> Result<Vec<Example>> {
        let examples = match row {
            Row::Completion { prompt, completion } => vec![self.pair(prompt, completion, true)?],
            Row::Choice { prompt, choices, label } => vec![self.pair(prompt, &choices[*label], true)?],
            Row::Text { text } => {
                let ids = self.tokenizer.encode(text)?;
                let bos = self.tokenizer.bos().filter(|bos| ids.first() == Some(bos));
                let body = &ids[usize::from(bos.is_some())..];
                let windows = body.chunks(self.max_length - usize::from(bos.is_some()));
                windows
                    .map(|part| Example {
                        ids: bos.into_iter().chain(part.iter().copied()).collect(),
                        first: 1,
                    })
                    .filter(|example| example.ids.len() >= 2)
                    .collect()
            }
        };
        for example in &examples {
            if let Some(id) = example.ids.iter().find(|id| **id as usize >= self.vocab) {
                bail!(
                    "token {id} is outside the model's vocabulary of {}: the tokenizer belongs to another model",
                    self.vocab
                );
            }
        }
        Ok(examples)
    }

    /// All examples of a file of rows for training, and how many rows were left out because they are too long.
    pub fn training(&self, rows: &[Row], path: &Path) -> Result<(Vec<Example>, usize)> {
        let mut examples = Vec::new();
        for row in rows {
            examples.extend(self.examples(row).with_context(|| path.display().to_string())?);
        }
        let all = examples.len();
        examples.retain(|example| example.ids.len() <= self.max_length && example.counted() > 0);
        if examples.is_empty() {
            bail!(
                "{}: no row has between 2 and {} tokens; raise --max-length",
                path.display(),
                self.max_length
            );
        }
        let left_out = all - examples.len();
        Ok((examples, left_out))
    }
}

/// The endless order of examples: each epoch a permutation by the seed. Any step can be asked for without those before.
#[derive(Clone, Debug)]
pub struct Order {
    rows: usize,
    seed: u64,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Order {
    /// Of this many examples.
    pub fn new(rows: usize, seed: u64) -> Self {
        Self { rows, seed, epoch: None }
    }

    /// Indices `start..start + count` of the endless order.
    pub fn indices(&mut self, start: usize, count: usize) -> Vec<usize> {
        (start..start + count).map(|at| self.at(at)).collect()
    }

    fn at(&mut self, at: usize) -> usize {
        let epoch = (at / self.rows) as u64;
        if self.epoch.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let mut permutation: Vec<usize> = (0..self.rows).collect();
            let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(epoch);
            fastrand::Rng::with_seed(seed).shuffle(&mut permutation);
            self.epoch = Some((epoch, permutation));
        }
        self.epoch.as_ref().map_or(0, |(_, permutation)| permutation[at % self.rows])
    }
}

/// A hash of examples: what a run and a teacher's states depend on.
pub fn digest(examples: &[Example]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for example in examples {
        hasher.update(&(example.first as u64).to_le_bytes());
        hasher.update(&(example.ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&example.ids));
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_has_every_row_once() {
        let mut order = Order::new(7, 3);
        let first = order.indices(0, 14);
        for epoch in first.chunks(7) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(first[..7], first[7..]);
        // Any part of it is the same when asked for alone.
        assert_eq!(Order::new(7, 3).indices(5, 6), first[5..11]);
        assert_ne!(Order::new(7, 4).indices(0, 14), first);
    }
}
