//! Rows of an evaluation file: one JSON object a line.
//!
//! - `{"prompt": str, "completion": str}` for generation,
//! - `{"prompt": str, "choices": [str], "label": int}` for classification,
//! - `{"text": str}` for plain text.
//!
//! Prompts are complete: special tokens such as `<|user|>` stand in the text and are recognised.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// One row.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Row {
    /// The choice with the highest likelihood wins.
    Choice {
        /// What comes before.
        prompt: String,
        /// The candidates.
        choices: Vec<String>,
        /// Index of the right one.
        label: usize,
    },
    /// The greedy continuation is compared.
    Completion {
        /// What comes before.
        prompt: String,
        /// What should follow.
        completion: String,
    },
    /// The text's own likelihood.
    Text {
        /// The text.
        text: String,
    },
}

/// Reads a file of rows; all must be of one kind.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Row>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let mut rows: Vec<Row> = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        if rows.len() == limit.unwrap_or(usize::MAX) {
            break;
        }
        let at = || format!("{} line {}", path.display(), number + 1);
        let row: Row = serde_json::from_str(line).with_context(|| {
            format!("{}: expected {{prompt, completion}}, {{prompt, choices, label}} or {{text}}", at())
        })?;
        if let Row::Choice { choices, label, .. } = &row
            && *label >= choices.len()
        {
            bail!("{}: label {label}, but there are {} choices", at(), choices.len());
        }
        if rows.first().is_some_and(|first| std::mem::discriminant(first) != std::mem::discriminant(&row)) {
            bail!("{}: the rows before are of another kind; one file holds one kind", at());
        }
        rows.push(row);
    }
    if rows.is_empty() {
        bail!("{}: no rows", path.display());
    }
    Ok(rows)
}

/// Overlap of words between an answer and the expected text, as in SQuAD: harmonic mean of precision and recall.
pub fn token_f1(actual: &str, expected: &str) -> f64 {
    let words = |s: &str| {
        let mut words: Vec<String> = s.split_whitespace().map(str::to_lowercase).collect();
        words.sort();
        words
    };
    let (actual, expected) = (words(actual), words(expected));
    if actual.is_empty() || expected.is_empty() {
        return f64::from(u8::from(actual == expected));
    }
    let (mut i, mut j, mut common) = (0, 0, 0);
    while let (Some(a), Some(b)) = (actual.get(i), expected.get(j)) {
        match a.cmp(b) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, common) = (i + 1, j + 1, common + 1),
        }
    }
    2.0 * f64::from(common) / (actual.len() + expected.len()) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn f1_counts_shared_words() {
        assert_eq!(token_f1("a b", "a b"), 1.0);
        assert_eq!(token_f1("a b", "c d"), 0.0);
        assert!((token_f1("the cat sat", "the cat") - 0.8).abs() < 1e-12);
        assert!((token_f1("a a b", "a b b") - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!(token_f1("", ""), 1.0);
    }

    #[test]
    fn rows_of_one_kind_only() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.jsonl");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            super::read(&file, None)
        };
        assert_eq!(read("{\"text\":\"x\"}\n\n{\"text\":\"y\"}\n").unwrap().len(), 2);
        let mixed = read("{\"text\":\"x\"}\n{\"prompt\":\"p\",\"completion\":\"c\"}\n").unwrap_err();
        assert!(mixed.to_string().contains("line 2"));
        let label = read("{\"prompt\":\"p\",\"choices\":[\"a\"],\"label\":1}").unwrap_err();
        assert!(label.to_string().contains("label 1"));
        assert!(read("{\"txt\":\"x\"}").is_err());
        assert!(read("").is_err());
    }
}
