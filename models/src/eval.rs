//! How good a model with an adapter is on a file of rows.

use anyhow::Result;
use calora::engine::{BoundAdapter, Engine};
use calora::session::{GenerationOptions, Session, SessionOptions};
use serde::Serialize;

use crate::rows::{Row, token_f1};

/// How one row went; only the fields of its kind are present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct RowResult {
    /// Whether the likeliest choice was the right one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub right: Option<bool>,
    /// Whether the greedy completion was the expected text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<bool>,
    /// Its overlap of words with the expected text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f1: Option<f64>,
    /// Sum of the negative log-likelihoods of the text's tokens, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// How many tokens that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
}

/// The result of an evaluation; only the fields of the rows' kind are present.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Evaluation {
    /// Rows evaluated.
    pub rows: usize,
    /// Rows whose likeliest choice was the right one, of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// Mean negative log-likelihood of a token, in nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// `exp(loss)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Tokens that the loss is a mean of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Greedy completions equal to the expected text, of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<f64>,
    /// Mean overlap of words with the expected text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_f1: Option<f64>,
}

/// Loss of token ids in windows of at most `window` tokens, each started by `bos` where given; (sum, tokens).
pub fn windowed_loss(
    session: &mut Session,
    bos: Option<u32>,
    ids: &[u32],
    window: usize,
) -> Result<(f64, usize)> {
    let (mut sum, mut count) = (0.0, 0);
    let body = window.max(2) - usize::from(bos.is_some());
    for part in ids.chunks(body) {
        let window: Vec<u32> = bos.into_iter().chain(part.iter().copied()).collect();
        sum -= session.log_likelihood(&window, 1)?;
        count += window.len() - 1;
    }
    Ok((sum, count))
}

/// Evaluates rows; `window` is the most tokens of a text seen at once, `tick` is called after each row with its result.
pub fn evaluate(
    engine: &Engine,
    adapters: &[(BoundAdapter, f32)],
    rows: &[Row],
    window: usize,
    mut tick: impl FnMut(RowResult) -> Result<()>,
) -> Result<Evaluation> {
    let tokenizer = engine.tokenizer()?;
    let options = SessionOptions { adapters: adapters.to_vec(), ..SessionOptions::default() };
    let mut session = engine.session(options)?;
    let mut total = Totals::default();
    for row in rows {
        let result = match row {
            Row::Choice { prompt, choices, label } => {
                let prompt_length = tokenizer.encode(prompt)?.len();
                let mut best = (f64::INFINITY, 0);
                for (index, choice) in choices.iter().enumerate() {
                    let ids = tokenizer.encode(&format!("{prompt}{choice}"))?;
                    let loss = -session.log_likelihood(&ids, prompt_length)?;
                    if loss < best.0 {
                        best = (loss, index);
                    }
                }
                RowResult { right: Some(best.1 == *label), ..RowResult::default() }
            }
            Row::Completion { prompt, completion } => {
                let options = GenerationOptions {
                    temperature: Some(0.0),
                    max_tokens: Some(tokenizer.encode(completion)?.len() + 8),
                    ..GenerationOptions::default()
                };
                let answer = session.respond_to_tokens(&tokenizer.encode(prompt)?, &options)?.collect()?.text;
                // A completion may spell the end-of-turn token, which an answer never contains.
                let expected = tokenizer.decode(&tokenizer.encode_plain(completion)?)?;
                RowResult {
                    exact: Some(answer.trim() == expected.trim()),
                    f1: Some(token_f1(&answer, &expected)),
                    ..RowResult::default()
                }
            }
            Row::Text { text } => {
                let ids = tokenizer.encode(text)?;
                let bos = tokenizer.bos().filter(|bos| ids.first() == Some(bos));
                let (sum, count) = windowed_loss(&mut session, bos, &ids[bos.iter().count()..], window)?;
                RowResult { loss: Some(sum), tokens: Some(count), ..RowResult::default() }
            }
        };
        total.add(&result);
        tick(result)?;
    }
    Ok(total.evaluation(rows))
}

#[derive(Default)]
struct Totals {
    right: usize,
    exact: usize,
    f1: f64,
    loss: f64,
    tokens: usize,
}

impl Totals {
    fn add(&mut self, row: &RowResult) {
        self.right += usize::from(row.right == Some(true));
        self.exact += usize::from(row.exact == Some(true));
        self.f1 += row.f1.unwrap_or_default();
        self.loss += row.loss.unwrap_or_default();
        self.tokens += row.tokens.unwrap_or_default();
    }

    fn evaluation(self, rows: &[Row]) -> Evaluation {
        let n = rows.len();
        let share = |count: usize| Some(count as f64 / n.max(1) as f64);
        let base = Evaluation { rows: n, ..Evaluation::default() };
        match rows.first() {
            None => base,
            Some(Row::Choice { .. }) => Evaluation { accuracy: share(self.right), ..base },
            Some(Row::Completion { .. }) => {
                Evaluation { exact_match: share(self.exact), token_f1: Some(self.f1 / n as f64), ..base }
            }
            Some(Row::Text { .. }) => {
                let loss = self.loss / self.tokens.max(1) as f64;
                Evaluation {
                    loss: Some(loss),
                    perplexity: Some(loss.exp()),
                    tokens: Some(self.tokens),
                    ..base
                }
            }
        }
    }
}
