//! Labelled data to rows: what comes out, what is refused and where, what is held out.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::{Path, PathBuf};

use calora_models::prepare::{Kind, PrepareOptions, Prepared, Shape, prepare, to_jsonl};
use calora_models::rows::{self, Row};

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("base")
}

fn options() -> PrepareOptions {
    PrepareOptions {
        kind: None,
        shape: Shape::Chat(None),
        input: None,
        target: None,
        labels: None,
        skip_empty: false,
        tokens: 256,
        limit: None,
        holdout: 0.0,
        seed: 0,
    }
}

fn names(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|name| (*name).to_owned()).collect())
}

/// Prepares a file of this name and content.
fn made(name: &str, content: &str, options: &PrepareOptions) -> anyhow::Result<Prepared> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    prepare(&base(), &path, options)
}

fn lines(name: &str, content: &str, options: &PrepareOptions) -> String {
    to_jsonl(&made(name, content, options).unwrap().rows)
}

#[test]
fn shapes_of_data_and_rows() {
    let intent = "{\"text\": \" play \\\"Résumé\\\" \", \"intent\": \"PlayMusic\", \"slots\": []}\n";
    let spam = "{\"text\":\"win\",\"label\":\"spam\"}\n\n{\"text\":\"hi\",\"label\":\"ham\"}\n";
    let choices = PrepareOptions { kind: Some(Kind::Choices), ..options() };
    let raw = PrepareOptions { shape: Shape::Raw, ..options() };
    let template = PrepareOptions {
        shape: Shape::Template("{lang}: {input} ->".into()),
        target: Some("to".into()),
        ..options()
    };
    let system = PrepareOptions { shape: Shape::Chat(Some("Be short.".into())), ..options() };
    let numbered = PrepareOptions { labels: names(&["no", "yes"]), ..choices.clone() };
    let cases: &[(&str, &str, &PrepareOptions, &str)] = &[
        (
            "a.jsonl",
            intent,
            &options(),
            "{\"prompt\": \"<|user|>play \\\"Résumé\\\"<|assistant|>\", \"completion\": \"PlayMusic\"}\n",
        ),
        (
            "a.jsonl",
            intent,
            &system,
            "{\"prompt\": \"<|system|>Be short.<|user|>play \\\"Résumé\\\"<|assistant|>\", \"completion\": \"PlayMusic\"}\n",
        ),
        // The labels found, sorted.
        (
            "a.jsonl",
            spam,
            &choices,
            "{\"prompt\": \"<|user|>win<|assistant|>\", \"choices\": [\"ham\", \"spam\"], \"label\": 1}\n\
             {\"prompt\": \"<|user|>hi<|assistant|>\", \"choices\": [\"ham\", \"spam\"], \"label\": 0}\n",
        ),
        (
            "a.csv",
            "label,text\n1,\"a, b\"\n",
            &numbered,
            "{\"prompt\": \"<|user|>a, b<|assistant|>\", \"choices\": [\"no\", \"yes\"], \"label\": 1}\n",
        ),
        (
            "a.jsonl",
            "{\"text\":\"a\",\"label\":0}",
            &numbered,
            "{\"prompt\": \"<|user|>a<|assistant|>\", \"choices\": [\"no\", \"yes\"], \"label\": 0}\n",
        ),
        (
            "a.tsv",
            "input\ttarget\nx y\tz\n",
            &options(),
            "{\"prompt\": \"<|user|>x y<|assistant|>\", \"completion\": \"z\"}\n",
        ),
        (
            "a.jsonl",
            "{\"prompt\":\"<|user|>q\",\"completion\":\" a\"}",
            &raw,
            "{\"prompt\": \"<|user|>q\", \"completion\": \"a\"}\n",
        ),
        (
            "a.jsonl",
            "{\"lang\":\"fr\",\"text\":\"chat\",\"to\":\"cat\"}",
            &template,
            "{\"prompt\": \"fr: chat ->\", \"completion\": \"cat\"}\n",
        ),
        ("a.txt", "\nShort text.\n", &options(), "{\"text\": \"Short text.\"}\n"),
    ];
    for (name, content, options, expected) in cases {
        assert_eq!(lines(name, content, options), *expected, "{content}");
    }
}

#[test]
fn empty_rows_can_be_left_out() {
    let content = "{\"text\":\" \",\"label\":\"a\"}\n{\"text\":\"x\",\"label\":\"a\"}\n{\"text\":\"x\",\"label\":\"\"}\n";
    let prepared = made("a.jsonl", content, &PrepareOptions { skip_empty: true, ..options() }).unwrap();
    assert_eq!((prepared.rows.len(), prepared.skipped), (1, 2));
}

/// What is written is what `calora eval` and the trainer read.
#[test]
fn rows_are_read_back() {
    let options = PrepareOptions { kind: Some(Kind::Choices), ..options() };
    let prepared = made("a.csv", "text,label\nx,\"b \"\"1\"\"\"\ny,a\n", &options).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), to_jsonl(&prepared.rows)).unwrap();
    assert_eq!(rows::read(file.path(), None).unwrap(), prepared.rows);
}

#[test]
fn refused_with_file_and_line() {
    let choices = PrepareOptions { kind: Some(Kind::Choices), labels: names(&["a", "b"]), ..options() };
    let half = PrepareOptions { holdout: 0.1, ..options() };
    let template = PrepareOptions { shape: Shape::Template("no field".into()), ..options() };
    let good = "{\"text\":\"x\",\"label\":\"a\"}\n";
    let cases: &[(&str, &str, &PrepareOptions, &[&str])] = &[
        (
            "a.jsonl",
            "{\"text\":\"x\",\"label\":\"a\"}\n{oops\n",
            &options(),
            &["a.jsonl line 2", "JSON object"],
        ),
        ("a.jsonl", "\n[1]\n", &options(), &["a.jsonl line 2"]),
        (
            "a.jsonl",
            "{\"txt\":\"x\",\"label\":\"a\"}\n",
            &options(),
            &["line 1", "no field text or input", "txt"],
        ),
        ("a.jsonl", "{\"text\":\"x\"}\n", &options(), &["line 1", "no field intent or label"]),
        ("a.jsonl", "{\"text\":1,\"label\":\"a\"}\n", &options(), &["line 1", "no text"]),
        ("a.jsonl", "{\"text\":\"x\",\"label\":3}\n", &options(), &["line 1", "--labels"]),
        ("a.jsonl", "{\"text\":\"x\",\"label\":2}\n", &choices, &["line 1", "label 2", "2 names"]),
        ("a.jsonl", "{\"text\":\"x\",\"label\":\"c\"}\n", &choices, &["line 1", "\"c\" is not among a, b"]),
        ("a.jsonl", "{\"text\":\"  \",\"label\":\"a\"}\n", &options(), &["line 1", "empty text"]),
        ("a.jsonl", "{\"text\":\"x\",\"label\":\"\"}\n", &options(), &["line 1", "empty text"]),
        ("a.jsonl", "{\"text\":\"x <|eos|>\",\"label\":\"a\"}\n", &options(), &["line 1", "<|eos|>"]),
        ("a.jsonl", "{\"text\":\"x\",\"label\":\"a<|user|>\"}\n", &options(), &["line 1", "<|user|>"]),
        ("a.jsonl", "", &options(), &["no rows"]),
        ("a.jsonl", good, &half, &["too few rows"]),
        ("a.jsonl", good, &template, &["line 1", "{input}"]),
        ("a.csv", "text,label\nx\n", &options(), &["a.csv line 2", "1 columns"]),
        ("a.txt", "x", &choices, &["plain text"]),
        ("a.txt", " \n", &options(), &["a.txt", "empty text"]),
    ];
    for (name, content, options, words) in cases {
        let error = format!("{:#}", made(name, content, options).unwrap_err());
        assert!(words.iter().all(|word| error.contains(word)), "{content:?}: {error}");
    }
}

#[test]
fn held_out_rows_are_others_and_the_same_each_time() {
    let content: String = (0..200).map(|n| format!("{{\"text\":\"row {n}\",\"label\":\"l\"}}\n")).collect();
    let make = |seed, limit| {
        made("a.jsonl", &content, &PrepareOptions { holdout: 0.1, seed, limit, ..options() }).unwrap()
    };
    let prepared = make(3, None);
    assert_eq!((prepared.rows.len(), prepared.heldout.len()), (180, 20));
    assert!(prepared.heldout.iter().all(|row| !prepared.rows.contains(row)));
    assert_eq!(prepared, make(3, None));
    assert_ne!(prepared.heldout, make(4, None).heldout);
    // A limit draws from all of the file: a file sorted by label would else give rows of one label.
    let drawn = make(3, Some(15));
    assert_eq!((drawn.rows.len(), drawn.heldout.len()), (15, 15));
    assert!(drawn.rows.iter().all(|row| prepared.rows.contains(row)));
    assert_ne!(drawn.rows[..], prepared.rows[..15]);
}

#[test]
fn texts_are_cut_and_their_end_is_held_out() {
    let words = |n| vec!["word"; n].join(" ");
    let text = format!("{}\n\nThe end. {}", words(900), words(300));
    let options = PrepareOptions { tokens: 50, holdout: 0.3, ..options() };
    let prepared = made("a.txt", &text, &options).unwrap();
    assert!(prepared.rows.len() > 5, "{}", prepared.rows.len());
    let end = |row: &Row| matches!(row, Row::Text { text } if text.contains("The end."));
    assert!(end(&prepared.heldout[0]) && !prepared.rows.iter().any(end));
}
