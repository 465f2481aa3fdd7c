//! Data files as records: named fields, each with the line it came from.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::{INPUTS, PrepareOptions, TARGETS};

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Line of the file, from 1.
    pub(super) line: usize,
    fields: Map<String, Value>,
}

impl Record {
    /// The text of a field: `chosen`, or else the first of `usual` that there is.
    pub(super) fn text(&self, chosen: Option<&str>, usual: &[&str]) -> Result<&str> {
        let (name, value) = self.field(chosen, usual)?;
        match value.as_str() {
            Some(text) => Ok(text),
            None => bail!("the field {name:?} is no text"),
        }
    }

    /// The answer: a text, or a whole number that counts `labels`.
    pub(super) fn answer(
        &self,
        chosen: Option<&str>,
        usual: &[&str],
        labels: Option<&[String]>,
    ) -> Result<String> {
        let (name, value) = self.field(chosen, usual)?;
        // A table has no types: a number is text there, and one of the labels only if they say so.
        let number = value.as_u64().or_else(|| {
            let text = value.as_str()?;
            if labels?.iter().any(|label| label == text) { None } else { text.parse().ok() }
        });
        match (value, number, labels) {
            (_, Some(number), Some(labels)) => match labels.get(number as usize) {
                Some(label) => Ok(label.clone()),
                None => bail!("label {number}, but there are {} names", labels.len()),
            },
            (Value::String(text), _, _) => Ok(text.trim().to_owned()),
            (Value::Number(number), _, None) => {
                bail!("label {number} is a number; --labels names what it stands for")
            }
            _ => bail!("the field {name:?} is neither a text nor a whole number"),
        }
    }

    /// Whether what is asked or answered is there, but empty.
    pub(super) fn is_empty(&self, options: &PrepareOptions) -> bool {
        let empty = |chosen: &Option<String>, usual| {
            self.text(chosen.as_deref(), usual).is_ok_and(|text| text.trim().is_empty())
        };
        empty(&options.input, INPUTS) || empty(&options.target, TARGETS)
    }

    fn field(&self, chosen: Option<&str>, usual: &[&str]) -> Result<(&str, &Value)> {
        let names = chosen.as_ref().map_or(usual, std::slice::from_ref);
        match names.iter().find_map(|name| self.fields.get_key_value(*name)) {
            Some((name, value)) => Ok((name, value)),
            None => {
                let found: Vec<&str> = self.fields.keys().map(String::as_str).collect();
                bail!("no field {}; it has {}", names.join(" or "), found.join(", "))
            }
        }
    }
}

/// Whether a file is one text.
pub(super) fn is_plain_text(path: &Path) -> bool {
    extension(path) == "txt"
}

fn extension(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

/// Reads a file of records.
pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    match extension(path).as_str() {
        "csv" => table(&text, ',', path),
        "tsv" => table(&text, '\t', path),
        _ => json_lines(&text, path),
    }
}

fn json_lines(text: &str, path: &Path) -> Result<Vec<Record>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let record = |(index, line): (usize, &str)| {
        let at = || format!("{} line {}: expected one JSON object", path.display(), index + 1);
        Ok(Record { line: index + 1, fields: serde_json::from_str(line).with_context(at)? })
    };
    lines.map(record).collect()
}

/// A table whose first line names its columns; quoted fields as in RFC 4180.
fn table(text: &str, separator: char, path: &Path) -> Result<Vec<Record>> {
    let mut lines = cells(text, separator, path)?.into_iter();
    let Some((_, names)) = lines.next() else { return Ok(Vec::new()) };
    let record = |(line, cells): (usize, Vec<String>)| {
        if cells.len() != names.len() {
            let (path, found, wanted) = (path.display(), cells.len(), names.len());
            bail!("{path} line {line}: {found} columns, the first line names {wanted}");
        }
        Ok(Record { line, fields: names.iter().cloned().zip(cells.into_iter().map(Value::from)).collect() })
    };
    lines.map(record).collect()
}

/// The cells of a table's lines, each with the number of the line it begins in; empty lines are left out.
fn cells(text: &str, separator: char, path: &Path) -> Result<Vec<(usize, Vec<String>)>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut out, mut row, mut cell, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let (mut line, mut begun) = (1, 1);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' if quoted => quoted = false,
            c if quoted => cell.push(c),
            '"' if cell.is_empty() => quoted = true,
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                row.push(std::mem::take(&mut cell));
                out.push((begun, std::mem::take(&mut row)));
                begun = line;
            }
            c if c == separator => row.push(std::mem::take(&mut cell)),
            c => cell.push(c),
        }
    }
    if quoted {
        bail!("{} line {begun}: a quote that does not end", path.display());
    }
    if !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        out.push((begun, row));
    }
    out.retain(|(_, row)| row.iter().any(|cell| !cell.is_empty()));
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn tables_with_quotes() {
        let text = "text,label\r\n\"a, \"\"b\"\"\nc\",1\n\nplain,2";
        let rows = cells(text, ',', Path::new("t.csv")).unwrap();
        let row = |line, a: &str, b: &str| (line, vec![a.to_owned(), b.to_owned()]);
        assert_eq!(rows, [row(1, "text", "label"), row(2, "a, \"b\"\nc", "1"), row(5, "plain", "2")]);
        assert!(cells("a\n\"b", ',', Path::new("t.csv")).unwrap_err().to_string().contains("line 2"));
        assert!(table("a,b\n1\n", ',', Path::new("t.csv")).unwrap_err().to_string().contains("line 2"));
    }
}
