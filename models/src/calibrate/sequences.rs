//! Token sequences to calibrate on: rows of any kind, or what the model samples itself.

use calora::Result;
use calora::engine::Engine;
use calora::session::{GenerationOptions, SessionOptions};
use calora::text::Tokenizer;

use crate::rows::Row;

/// The rows' texts as ids, at most `window` tokens a sequence (at least 2): a text, a prompt with its completion, a prompt
/// with the right choice. What is longer goes on in another sequence; each starts as the tokenizer starts a text.
pub fn sequences(tokenizer: &Tokenizer, rows: &[Row], window: usize) -> Result<Vec<Vec<u32>>> {
    let mut sequences = Vec::new();
    for row in rows {
        let ids = match row {
            Row::Text { text } => tokenizer.encode(text)?,
            Row::Completion { prompt, completion } => tokenizer.encode(&format!("{prompt}{completion}"))?,
            Row::Choice { prompt, choices, label } => {
                let choice = choices.get(*label).map_or("", String::as_str);
                tokenizer.encode(&format!("{prompt}{choice}"))?
            }
        };
        let bos = tokenizer.bos().filter(|bos| ids.first() == Some(bos));
        let body = window.max(2) - usize::from(bos.is_some());
        for part in ids[bos.iter().count()..].chunks(body) {
            sequences.push(bos.into_iter().chain(part.iter().copied()).collect());
        }
    }
    Ok(sequences)
}

/// About `tokens` tokens in sequences of `window` that an engine samples at temperature 1 behind the token that starts a
/// text; the same each time. `progress` gets tokens so far.
pub fn sampled(
    engine: &Engine,
    start: u32,
    tokens: usize,
    window: usize,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    let mut session = engine.session(SessionOptions::default())?;
    let (mut sequences, mut count) = (Vec::new(), 0);
    while count < tokens {
        let options = GenerationOptions {
            temperature: Some(1.0),
            top_k: Some(0),
            top_p: Some(1.0),
            min_p: Some(0.0),
            repetition_penalty: Some(1.0),
            seed: Some(sequences.len() as u64),
            max_tokens: Some((window.max(2) - 1).min(tokens - count)),
            ignore_end_of_turn: true,
            ..GenerationOptions::default()
        };
        let response = session.respond_to_tokens(&[start], &options)?.collect()?;
        let sequence: Vec<u32> = [start].into_iter().chain(response.tokens).collect();
        count += sequence.len();
        sequences.push(sequence);
        progress(count);
    }
    Ok(sequences)
}
