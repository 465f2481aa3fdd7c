//! Rows of any kind as token sequences.

use calora::Result;
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
