//! Tokenizers and chat templates of published models against other people's results.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use calora::Error;
use calora::text::chat::{ChatTemplate, Context};
use calora::text::{Message, TextStream, Tokenizer, TokenizerConfig};
use serde::Deserialize;

fn load(folder: &Path) -> Tokenizer {
    Tokenizer::load(folder, &TokenizerConfig::load(folder).unwrap()).unwrap()
}

/// Streams ids one by one; each delta must be whole characters by its type, so only the sum is checked.
fn streamed(tokenizer: &Arc<Tokenizer>, previous: Option<u32>, ids: &[u32]) -> String {
    let mut stream = TextStream::new(tokenizer.clone(), previous).unwrap();
    let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    text += &stream.finish().unwrap();
    text
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

#[test]
fn published_vectors() {
    let Some(data) = common::test_data("tokenizer vectors of phi-3, qwen2.5 and smollm") else { return };
    for name in ["phi-3", "qwen2.5", "smollm"] {
        let folder = data.join("tokenizers").join(name);
        let tokenizer = Arc::new(load(&folder));
        let cases = std::fs::read_to_string(folder.join("vectors.json")).unwrap();
        let cases: serde_json::Value = serde_json::from_str(&cases).unwrap();
        let cases = cases.get("cases").cloned().unwrap_or(cases);
        let cases: Vec<Case> = serde_json::from_value(cases).unwrap();
        assert_eq!(cases.len(), 47, "{name}");
        for case in cases {
            assert_eq!(tokenizer.encode_plain(&case.text).unwrap(), case.ids, "{name}: {:?}", case.text);
            // Qwen composes characters (NFC), so the round trip is compared with the tokenizer's own decoding.
            let whole = tokenizer.decode(&case.ids).unwrap();
            assert_eq!(streamed(&tokenizer, None, &case.ids), whole, "{name}: {:?}", case.text);
            assert!(case.ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary_size()));
        }
    }
}

#[test]
fn beginnings_of_sequences() {
    let Some(data) = common::test_data("BOS of published tokenizers") else { return };
    for (folder, bos) in [
        ("models/stories260k", Some(1)),
        ("models/tinystories-656k", Some(1)),
        ("tokenizers/phi-3", Some(1)),
        ("tokenizers/qwen2.5", None),
        ("tokenizers/smollm", None),
    ] {
        let tokenizer = load(&data.join(folder));
        let ids = tokenizer.encode("Once upon a time").unwrap();
        let plain = tokenizer.encode_plain("Once upon a time").unwrap();
        assert_eq!(ids, [bos.map_or(vec![], |b| vec![b]), plain].concat(), "{folder}");
        assert_eq!(tokenizer.adds_prefix(), bos.is_some(), "{folder}");
    }
    let stories = load(&data.join("models/stories260k"));
    assert_eq!((stories.bos(), stories.eos(), stories.vocabulary_size()), (Some(1), Some(2), 512));
    let qwen = load(&data.join("tokenizers/qwen2.5"));
    let im_start = qwen.token_id("<|im_start|>").unwrap();
    assert_eq!(qwen.encode("<|im_start|>").unwrap(), [im_start], "special tokens are recognised in text");
}

#[test]
fn streams_split_no_character() {
    let Some(data) = common::test_data("streams of published tokenizers") else { return };
    let text = "Zoë said 👩‍👩‍👧‍👦 «是的» 🏴‍☠️ naïve\u{301} 한국어 ٣٤ 𝔘𝔫𝔦 \u{10FFFF} end";
    for folder in ["models/stories260k", "tokenizers/phi-3", "tokenizers/smollm"] {
        let tokenizer = Arc::new(load(&data.join(folder)));
        let ids = tokenizer.encode_plain(text).unwrap();
        assert_eq!(streamed(&tokenizer, None, &ids), text, "{folder}");
        // Half an emoji at the end is one replacement character, and never swallows what stood before.
        let ids = tokenizer.encode_plain("a👩").unwrap();
        assert_eq!(streamed(&tokenizer, None, &ids[..ids.len() - 1]), "a\u{FFFD}", "{folder}");
        // Random ids: nothing fails, nothing stalls, and deltas come to the same as all at once where that is valid.
        let mut rng = common::Random(7);
        for _ in 0..50 {
            let ids: Vec<u32> =
                (0..40).map(|_| rng.below(tokenizer.vocabulary_size().min(700)) as u32).collect();
            let whole = tokenizer.decode(&ids).unwrap();
            let parts = streamed(&tokenizer, None, &ids);
            if !whole.contains('\u{FFFD}') {
                assert_eq!(parts, whole, "{folder} {ids:?}");
            }
        }
    }
}

#[test]
fn a_continuation_keeps_its_leading_blank() {
    let Some(data) = common::test_data("leading blanks of published tokenizers") else { return };
    let tokenizer = Arc::new(load(&data.join("models/stories260k")));
    let ids = tokenizer.encode("Once upon a time").unwrap();
    assert_eq!(streamed(&tokenizer, Some(ids[1]), &ids[2..]), " upon a time");
    let word = tokenizer.encode_plain("time").unwrap();
    assert_eq!(streamed(&tokenizer, Some(ids[ids.len() - 1]), &word), " time");
    assert_eq!(streamed(&tokenizer, Some(1), &word), "time", "after a BOS the text begins");
}

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
    add_generation_prompt: bool,
}

/// 2026-02-07 12:00 UTC, as in make_expected.py.
const NOW: Duration = Duration::from_secs(1_770_465_600);

#[test]
fn templates_render_as_hugging_face_does() {
    let Some(data) = common::test_data("chat templates of published models") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text");
    let conversations = std::fs::read_to_string(root.join("conversations.json")).unwrap();
    let conversations: BTreeMap<String, Conversation> = serde_json::from_str(&conversations).unwrap();
    let expected = std::fs::read_to_string(root.join("expected.txt")).unwrap();
    let mut compared = 0;
    for line in expected.lines() {
        let [file, name, hash] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let template = match file.ends_with(".jinja") {
            true => ChatTemplate::new(&std::fs::read_to_string(data.join(file)).unwrap()).unwrap(),
            false => {
                let folder = data.join(file);
                TokenizerConfig::load(folder.parent().unwrap()).unwrap().chat_template.unwrap()
            }
        };
        let conversation = &conversations[name];
        let context = Context {
            bos_token: "<s>",
            eos_token: "</s>",
            add_generation_prompt: conversation.add_generation_prompt,
            now: UNIX_EPOCH + NOW,
        };
        let actual = match template.render(&conversation.messages, context) {
            Ok(text) => blake3::hash(text.as_bytes()).to_string(),
            Err(Error::ChatTemplate { .. }) => "refused".into(),
            Err(other) => panic!("{file} {name}: {other}"),
        };
        assert_eq!(actual, hash, "{file} {name}: {:?}", template.render(&conversation.messages, context));
        compared += 1;
    }
    assert!(compared >= 50, "{compared}");
}

#[test]
fn damaged_folders_are_typed_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let load = || Tokenizer::load(folder.path(), &TokenizerConfig::load(folder.path())?);
    assert!(matches!(load(), Err(Error::MissingFile { file, .. }) if file == "tokenizer.json"));
    std::fs::write(&path, "version https://git-lfs.example/spec/v1\noid sha256:00\nsize 9085657\n").unwrap();
    assert!(matches!(load(), Err(Error::LfsPointer { size: 9_085_657, .. })));
    for broken in ["", "{", "[]", "{\"version\":\"1.0\"}", "\u{0}\u{1}"] {
        std::fs::write(&path, broken).unwrap();
        assert!(matches!(load(), Err(Error::Tokenizer { .. })), "{broken:?}");
    }
    let config = folder.path().join("tokenizer_config.json");
    for (broken, reason) in [("{", "EOF"), ("[1]", "object"), ("{\"chat_template\": 3}", "chat_template")] {
        std::fs::write(&config, broken).unwrap();
        assert!(matches!(load(), Err(Error::Malformed { reason: r, .. }) if r.contains(reason)), "{broken}");
    }
    std::fs::write(&config, "{\"chat_template\": \"{% for %}\"}").unwrap();
    assert!(matches!(load(), Err(Error::ChatTemplate { .. })));
    let list =
        r#"{"chat_template": [{"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]}"#;
    std::fs::write(&config, list).unwrap();
    let context = Context { bos_token: "", eos_token: "", add_generation_prompt: true, now: UNIX_EPOCH };
    let render =
        || TokenizerConfig::load(folder.path()).unwrap().chat_template.unwrap().render(&[], context).unwrap();
    assert_eq!(render(), "D");
    std::fs::write(folder.path().join("chat_template.jinja"), "J{{ missing }}").unwrap();
    assert_eq!(render(), "J", "the file wins");
}
