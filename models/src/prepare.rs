//! Labelled data as rows ([`crate::rows::Row`]).
//!
//! A person has sentences with labels, questions with answers, or a text. A model wants prompts as it was trained to
//! see them. The convention of rows:
//!
//! - prompts are complete: the chat template's special tokens are spelled out and its answer is opened; the BOS that the
//!   tokenizer adds is not written;
//! - completions and choices hold no EOS: training adds it, generation stops at it, choices are scored without it;
//! - blanks around sentences and answers are dropped.

mod prompt;
mod records;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use calora::text::{Tokenizer, TokenizerConfig};
use serde_json::Value;

use prompt::Prompts;
pub use prompt::Shape;
use records::Record;

use crate::rows::Row;

/// What kind of rows to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `{prompt, completion}`.
    Completions,
    /// `{prompt, choices, label}`.
    Choices,
    /// `{text}`.
    Text,
}

/// How rows are made.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// The kind; unless told, text for a plain text file, completions for all else.
    pub kind: Option<Kind>,
    /// What a prompt looks like.
    pub shape: Shape,
    /// The field that is asked; one of [`INPUTS`] unless told.
    pub input: Option<String>,
    /// The field that is answered; one of [`TARGETS`] unless told.
    pub target: Option<String>,
    /// All labels in order: what an integer label counts, and the choices. For choices the labels found in the data,
    /// sorted, unless told.
    pub labels: Option<Vec<String>>,
    /// Leave out records whose input or target is empty, instead of an error.
    pub skip_empty: bool,
    /// The most tokens of a text row.
    pub tokens: usize,
    /// The most rows, drawn by the seed and kept in the file's order.
    pub limit: Option<usize>,
    /// The share that is held out: rows drawn by the seed, or the last part of a text, from a paragraph on.
    pub holdout: f64,
    /// Seed of both draws.
    pub seed: u64,
}

/// Fields that hold what is asked.
pub const INPUTS: &[&str] = &["text", "input", "prompt", "sentence"];
/// Fields that hold what is answered.
pub const TARGETS: &[&str] = &["intent", "label", "target", "completion", "output"];

/// Rows to train on and rows held out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prepared {
    /// To train on, or all where nothing is held out.
    pub rows: Vec<Row>,
    /// Held out.
    pub heldout: Vec<Row>,
    /// Records left out because they are empty.
    pub skipped: usize,
}

/// Makes rows of a data file for a model: `.txt` is one text, `.csv` and `.tsv` have a line of names, all else is one
/// JSON object a line.
///
/// # Errors
/// With file and line: what does not parse, lacks a field, has an unknown label, is empty or spells a special token.
/// Also a share or limit that leaves a side without rows.
pub fn prepare(model: &Path, data: &Path, options: &PrepareOptions) -> Result<Prepared> {
    if !(0.0..1.0).contains(&options.holdout) {
        bail!("a share of {} cannot be held out; it is at least 0 and below 1", options.holdout);
    }
    let config = TokenizerConfig::load(model)?;
    let tokenizer = Tokenizer::load(model, &config)?;
    let prompts = Prompts::new(model, &config, &tokenizer, &options.shape)?;
    let plain = records::is_plain_text(data);
    let kind = options.kind.unwrap_or(if plain { Kind::Text } else { Kind::Completions });
    let mut skipped = 0;
    let (rows, heldout) = match (plain, kind) {
        (true, Kind::Text) => text_file(data, &tokenizer, &prompts, options)?,
        (true, _) => bail!("{}: a plain text has no labels; it makes text rows", data.display()),
        (false, _) => {
            let mut found = records::read(data)?;
            let all = found.len();
            found.retain(|record| !(options.skip_empty && record.is_empty(options)));
            skipped = all - found.len();
            split(records(data, &found, &tokenizer, &prompts, kind, options)?, options)
        }
    };
    let mut random = fastrand::Rng::with_seed(options.seed ^ 0x6c_696d_6974);
    let prepared = Prepared {
        rows: draw(rows, options.limit, &mut random),
        heldout: draw(heldout, options.limit, &mut random),
        skipped,
    };
    if prepared.rows.is_empty() {
        bail!("{}: no rows are left to train on", data.display());
    }
    if options.holdout > 0.0 && prepared.heldout.is_empty() {
        bail!("{}: too few rows to hold out a share of {}", data.display(), options.holdout);
    }
    Ok(prepared)
}

/// Rows as a file: one JSON object a line, spelled as Python's `json.dumps(row, ensure_ascii=False)` does.
pub fn to_jsonl(rows: &[Row]) -> String {
    let string = |text: &str| Value::from(text).to_string();
    let mut out = String::new();
    for row in rows {
        // Writing to a string cannot fail.
        let _ = match row {
            Row::Completion { prompt, completion } => {
                writeln!(out, "{{\"prompt\": {}, \"completion\": {}}}", string(prompt), string(completion))
            }
            Row::Choice { prompt, choices, label } => {
                let choices: Vec<String> = choices.iter().map(|c| string(c)).collect();
                let choices = choices.join(", ");
                writeln!(
                    out,
                    "{{\"prompt\": {}, \"choices\": [{choices}], \"label\": {label}}}",
                    string(prompt)
                )
            }
            Row::Text { text } => writeln!(out, "{{\"text\": {}}}", string(text)),
        };
    }
    out
}

/// Rows of a file of records.
fn records(
    data: &Path,
    records: &[Record],
    tokenizer: &Tokenizer,
    prompts: &Prompts<'_>,
    kind: Kind,
    options: &PrepareOptions,
) -> Result<Vec<Row>> {
    if records.is_empty() {
        bail!("{}: no rows", data.display());
    }
    let at = |record: &Record| format!("{} line {}", data.display(), record.line);
    let mut rows = Vec::with_capacity(records.len());
    if kind == Kind::Text {
        for record in records {
            let text = record.text(options.input.as_deref(), INPUTS).and_then(|text| prompts.sentence(text));
            rows.extend(pieces(tokenizer, &text.with_context(|| at(record))?, options.tokens)?);
        }
        return Ok(rows);
    }
    let mut answers = Vec::with_capacity(records.len());
    for record in records {
        let answer = record.answer(options.target.as_deref(), TARGETS, options.labels.as_deref());
        let answer = answer.and_then(|answer| prompts.answer(&answer)).with_context(|| at(record))?;
        answers.push(answer);
    }
    let found = || answers.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect();
    let labels: Vec<String> = options.labels.clone().unwrap_or_else(found);
    if kind == Kind::Choices && labels.len() < 2 {
        bail!("{}: choices need at least two labels", data.display());
    }
    for (record, answer) in records.iter().zip(answers) {
        let prompt = prompts.render(record, options.input.as_deref()).with_context(|| at(record))?;
        let label = labels.iter().position(|l| *l == answer);
        if label.is_none() && options.labels.is_some() {
            bail!("{}: the label {answer:?} is not among {}", at(record), labels.join(", "));
        }
        rows.push(match (kind, label) {
            (Kind::Choices, Some(label)) => Row::Choice { prompt, choices: labels.clone(), label },
            _ => Row::Completion { prompt, completion: answer },
        });
    }
    Ok(rows)
}

/// Rows of a text file; what is held out is its end, as neighbouring stretches tell of each other.
fn text_file(
    data: &Path,
    tokenizer: &Tokenizer,
    prompts: &Prompts<'_>,
    options: &PrepareOptions,
) -> Result<(Vec<Row>, Vec<Row>)> {
    let text =
        std::fs::read_to_string(data).with_context(|| format!("{}: cannot be read", data.display()))?;
    let text = prompts.sentence(&text).with_context(|| data.display().to_string())?;
    let cut = if options.holdout > 0.0 {
        let from = (text.chars().count() as f64 * (1.0 - options.holdout)) as usize;
        let from = text.char_indices().nth(from).map_or(text.len(), |(at, _)| at);
        from + text[from..].find("\n\n").unwrap_or(0)
    } else {
        text.len()
    };
    let rows = |part: &str| pieces(tokenizer, part.trim(), options.tokens);
    Ok((rows(&text[..cut])?, rows(&text[cut..])?))
}

/// A text in stretches of `tokens` tokens; a shorter rest is a row only where it is all there is.
fn pieces(tokenizer: &Tokenizer, text: &str, tokens: usize) -> Result<Vec<Row>> {
    if tokens == 0 {
        bail!("a text row of no tokens");
    }
    let ids = tokenizer.encode_plain(text)?;
    if ids.len() <= tokens {
        return Ok(if text.is_empty() { Vec::new() } else { vec![Row::Text { text: text.to_owned() }] });
    }
    ids.chunks_exact(tokens).map(|piece| Ok(Row::Text { text: tokenizer.decode(piece)? })).collect()
}

/// Rows to train on and rows held out, both in the file's order.
fn split(rows: Vec<Row>, options: &PrepareOptions) -> (Vec<Row>, Vec<Row>) {
    let count = (rows.len() as f64 * options.holdout).round() as usize;
    let chosen = choose(rows.len(), count, &mut fastrand::Rng::with_seed(options.seed));
    let (held, kept): (Vec<_>, Vec<_>) = rows.into_iter().zip(chosen).partition(|(_, held)| *held);
    let rows = |list: Vec<(Row, bool)>| list.into_iter().map(|(row, _)| row).collect();
    (rows(kept), rows(held))
}

/// At most `limit` rows, in order. Drawn, as files are often sorted by label.
fn draw(rows: Vec<Row>, limit: Option<usize>, random: &mut fastrand::Rng) -> Vec<Row> {
    match limit {
        Some(limit) if limit < rows.len() => {
            let chosen = choose(rows.len(), limit, random);
            rows.into_iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(row, _)| row).collect()
        }
        _ => rows,
    }
}

/// `count` of `all` places.
fn choose(all: usize, count: usize, random: &mut fastrand::Rng) -> Vec<bool> {
    let mut chosen: Vec<bool> = (0..all).map(|place| place < count).collect();
    random.shuffle(&mut chosen);
    chosen
}
