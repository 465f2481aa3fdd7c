//! Two trained checkpoints of other people, against float64 values computed by an independent numpy program.
//!
//! Read from the folder that `CALORA_TEST_DATA` names; without it each test says what it leaves out.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::path::{Path, PathBuf};

use calora::engine::{ActivationChoice, DeviceChoice, Engine, EngineOptions};
use calora::quant::Bits;
use calora::session::{GenerationOptions, SessionOptions};
use calora_models::compress::{CompressOptions, compress};
use calora_models::eval::windowed_loss;
use serde_json::Value;

const MODELS: &[&str] = &["stories260k", "tinystories-656k"];

fn data(what: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("CALORA_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        // Written past the test harness, which shows nothing of what a passing test prints by macro.
        let line = format!("LEFT OUT (set CALORA_TEST_DATA to run it): {what}\n");
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
    }
    folder
}

fn load(folder: &Path, device: DeviceChoice, activations: ActivationChoice) -> Engine {
    Engine::load(folder, EngineOptions { device, activations, ..EngineOptions::default() }).unwrap()
}

fn golden(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Perplexity as the reference computes it: stories one by one (BOS and 255 tokens at most), Shakespeare in windows.
fn perplexities(engine: &Engine, data: &Path) -> [(f64, usize); 2] {
    let read = |name: &str| std::fs::read_to_string(data.join("text").join(name)).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let bos = tokenizer.bos();
    let body = |text: &str| {
        let mut ids = tokenizer.encode(text).unwrap();
        if ids.first() == bos.as_ref() {
            ids.remove(0);
        }
        ids
    };
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    let stories = read("tinystories-mini.txt");
    for story in stories.split("<|endoftext|>").map(str::trim).filter(|s| !s.is_empty()) {
        let mut ids = body(story);
        ids.truncate(255);
        let (s, c) = windowed_loss(&mut session, bos, &ids, 256).unwrap();
        (sum, count) = (sum + s, count + c);
    }
    let shakespeare: String = read("tinyshakespeare.txt").chars().take(20_000).collect();
    let (s, c) = windowed_loss(&mut session, bos, &body(&shakespeare), 256).unwrap();
    [((sum / count as f64).exp(), count), ((s / c as f64).exp(), c)]
}

/// (perplexity, tokens) of the reference.
fn reference(golden: &Value) -> [(f64, usize); 2] {
    ["tinystories", "tinyshakespeare"].map(|text| {
        let all = golden["perplexity"].as_object().unwrap();
        let value = all.iter().find(|(k, _)| k.starts_with(text)).unwrap().1;
        (value["perplexity"].as_f64().unwrap(), value["tokens"].as_u64().unwrap() as usize)
    })
}

#[test]
fn logits_and_greedy_text_of_real_checkpoints() {
    let Some(data) = data("logits and greedy text of two trained checkpoints") else { return };
    for name in MODELS {
        let folder = data.join("models").join(name);
        let golden = golden(&folder);
        for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            let engine = load(&folder, device, ActivationChoice::F32);
            let vocab = engine.model_info().shape.vocab;
            for prompt in golden["prompts"].as_array().unwrap() {
                let text = prompt["text"].as_str().unwrap();
                let expected_ids = ids(&prompt["ids"]);
                let tokenizer = engine.tokenizer().unwrap();
                let mut encoded = tokenizer.encode(text).unwrap();
                if encoded.first() != expected_ids.first() {
                    encoded.insert(0, expected_ids[0]);
                }
                assert_eq!(encoded, expected_ids, "{name}: {text}");
                let logits = engine.logits(&expected_ids, &[]).unwrap();
                let last = &logits[logits.len() - vocab..];
                let expected = prompt["last_logits"].as_array().unwrap();
                for (i, (a, e)) in last.iter().zip(expected).enumerate() {
                    let error = (f64::from(*a) - e.as_f64().unwrap()).abs();
                    assert!(error <= 1e-3, "{name} {device:?} {text}: logit {i} is off by {error:.1e}");
                }
                for (t, row) in logits.chunks(vocab).enumerate() {
                    let best = (0..vocab).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
                    assert_eq!(
                        Some(best as u64),
                        prompt["argmax_per_position"][t].as_u64(),
                        "{name} {device:?}"
                    );
                }
                // Below this margin float32 may choose the other token.
                if prompt["greedy_min_margin"].as_f64().unwrap() > 1e-3 {
                    let expected = ids(&prompt["greedy_ids"]);
                    let mut session = engine.session(SessionOptions::default()).unwrap();
                    let options = GenerationOptions {
                        temperature: Some(0.0),
                        max_tokens: Some(expected.len()),
                        ..GenerationOptions::default()
                    };
                    let stream = session.respond_to_tokens(&expected_ids, &options).unwrap();
                    assert_eq!(stream.collect().unwrap().tokens, expected, "{name} {device:?}: {text}");
                }
            }
        }
    }
}

#[test]
fn perplexity_of_real_checkpoints() {
    let Some(data) = data("perplexity of two trained checkpoints, uncompressed and compressed") else {
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    for name in MODELS {
        let source = data.join("models").join(name);
        let expected = reference(&golden(&source));
        // (label, bits, group, the most that perplexity may differ; int4 is stated, within a band that a broken
        // kernel leaves at once)
        let rows = [
            ("f32", None, 0.001f64),
            ("int8 g32", Some(Bits::Int8), 0.01),
            ("int4 g32", Some(Bits::Int4), 0.5),
        ];
        for (label, scheme, limit) in rows {
            let folder = match scheme {
                None => source.clone(),
                Some(bits) => {
                    let out = scratch.path().join(format!("{name}-{}", bits.count()));
                    compress(&source, &out, &CompressOptions::new(bits, Some(32)), |_, _| ()).unwrap();
                    out
                }
            };
            for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
                for activations in [ActivationChoice::F32, ActivationChoice::Int8] {
                    if activations == ActivationChoice::Int8 && scheme.is_none() {
                        continue;
                    }
                    let actual = perplexities(&load(&folder, device, activations), &data);
                    for ((ppl, tokens), (expected, expected_tokens)) in actual.iter().zip(expected) {
                        assert_eq!(*tokens, expected_tokens, "{name}: other text");
                        let off = ppl / expected - 1.0;
                        eprintln!(
                            "{name} {label} {device:?} {activations:?}: perplexity {ppl:.3} ({:+.3} %)",
                            off * 100.0
                        );
                        let limit =
                            if activations == ActivationChoice::Int8 { limit.max(0.02) } else { limit };
                        assert!(off.abs() <= limit, "{name} {label} {device:?}: {ppl} instead of {expected}");
                    }
                }
            }
        }
    }
}
