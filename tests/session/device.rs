//! A device without arithmetic: its logits are a hash of every token in the cache and of the adapter each was computed
//! with, so that one stale or missing position changes everything after it. It counts, and it can be made to fail.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use calora::adapter::{BranchKind, Tail};
use calora::device::*;
use calora::engine::{BoundAdapter, Engine, EngineParts};
use calora::text::{ChatTemplate, Tokenizer, TokenizerConfig};
use calora::weights::DType;
use calora::{Error, Result};

pub const VOCAB: usize = 300;
pub const BOS: u32 = 1;
pub const EOS: u32 = 2;
/// The most tokens of one pass.
pub const MAX_TOKENS: usize = 8;

type Hook = Box<dyn FnMut(usize) -> Result<()> + Send>;

/// What the device did and what it is told to do; tests hold the other end.
#[derive(Default)]
pub struct State {
    caches: HashMap<u64, (usize, Vec<(u32, u64)>)>,
    /// Of each adapter of a tail a hash.
    pub tails: HashMap<u64, Vec<u64>>,
    /// Tails loaded so far.
    pub loads: usize,
    next: u64,
    /// Passes so far.
    pub passes: usize,
    /// (tokens, what was wanted) of every pass.
    pub log: Vec<(usize, Want)>,
    /// The likeliest token after a position, in place of the hash's.
    pub script: HashMap<usize, u32>,
    /// Caches cannot be copied out.
    pub no_copies: bool,
    /// Called before every pass with its number.
    pub hook: Option<Hook>,
}

impl State {
    pub fn caches(&self) -> usize {
        self.caches.len()
    }

    /// Tokens computed so far.
    pub fn computed(&self) -> usize {
        self.log.iter().map(|(tokens, _)| tokens).sum()
    }

    /// Scripts the output that follows a prompt of `prompt` tokens.
    pub fn say(&mut self, prompt: usize, tokens: &[u32]) {
        self.script = tokens.iter().enumerate().map(|(i, token)| (prompt - 1 + i, *token)).collect();
    }
}

pub struct TestDevice {
    info: DeviceInfo,
    /// Bytes of one position outside the device.
    line: usize,
    pub state: Arc<Mutex<State>>,
}

fn mix(hash: u64, value: u64) -> u64 {
    let mut z = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z ^ (z >> 32)
}

fn logits(hash: u64, forced: Option<u32>) -> Vec<f32> {
    let mut logits: Vec<f32> =
        (0..VOCAB as u64).map(|id| (mix(hash, id + 1) >> 40) as f32 / (1 << 22) as f32).collect();
    // The end is never drawn by accident.
    logits[EOS as usize] = -50.0;
    if let Some(token) = forced {
        logits[token as usize] = 50.0;
    }
    logits
}

impl Device for TestDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> DeviceMemory {
        let state = self.state.lock().unwrap();
        DeviceMemory {
            caches: state.caches.len() as u64,
            tails: state.tails.len() as u64,
            ..DeviceMemory::default()
        }
    }

    fn create_cache(&mut self, positions: usize) -> Result<CacheId> {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = state.next;
        state.caches.insert(id, (positions, Vec::new()));
        Ok(CacheId(id))
    }

    fn drop_cache(&mut self, cache: CacheId) {
        assert!(self.state.lock().unwrap().caches.remove(&cache.0).is_some(), "dropped twice");
    }

    fn load_tails(&mut self, tails: &[&Tail]) -> Result<TailId> {
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = state.next;
        let mut contents = Vec::new();
        for tail in tails {
            let mut content = 0;
            for branch in tail.branches.iter().flatten() {
                content = mix(content, u64::from(branch.scaling.to_bits()));
                for v in branch.up.to_f32()? {
                    content = mix(content, u64::from(v.to_bits()));
                }
            }
            contents.push(content);
        }
        state.loads += 1;
        state.tails.insert(id, contents);
        Ok(TailId(id))
    }

    fn drop_tail(&mut self, tail: TailId) {
        assert!(self.state.lock().unwrap().tails.remove(&tail.0).is_some(), "dropped twice");
    }

    fn read_cache(&mut self, cache: CacheId, positions: usize) -> Result<Vec<u8>> {
        let state = self.state.lock().unwrap();
        if state.no_copies {
            return Err(device_error());
        }
        let content = &state.caches[&cache.0].1[..positions];
        let line = |(token, tail): &(u32, u64)| {
            let mut line = [token.to_le_bytes().as_slice(), &tail.to_le_bytes()].concat();
            line.resize(self.line, 0);
            line
        };
        Ok(content.iter().flat_map(line).collect())
    }

    fn write_cache(&mut self, cache: CacheId, bytes: &[u8]) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        let lines = bytes.chunks_exact(self.line);
        assert!(lines.remainder().is_empty());
        let content = lines.map(|line| {
            let (token, rest) = line.split_first_chunk().unwrap();
            (u32::from_le_bytes(*token), u64::from_le_bytes(*rest.first_chunk().unwrap()))
        });
        state.caches.get_mut(&cache.0).unwrap().1 = content.collect();
        Ok(())
    }

    fn forward_batch(&mut self, passes: &[Forward<'_>]) -> Result<Vec<Answer>> {
        passes.iter().map(|pass| self.one(pass)).collect()
    }
}

impl TestDevice {
    fn one(&mut self, pass: &Forward<'_>) -> Result<Answer> {
        let mut state = self.state.lock().unwrap();
        state.passes += 1;
        let number = state.passes;
        if let Some(mut hook) = state.hook.take() {
            let result = hook(number);
            state.hook = Some(hook);
            result?;
        }
        state.log.push((pass.tokens.len(), pass.want));
        assert!((1..=MAX_TOKENS).contains(&pass.tokens.len()));
        let mut tail = 0;
        for (i, content) in pass.tail.iter().flat_map(|tail| &state.tails[&tail.0]).enumerate() {
            let scale = pass.scales.get(i).copied().unwrap_or(1.0);
            if scale != 0.0 {
                tail = mix(mix(tail, *content), u64::from(scale.to_bits()));
            }
        }
        let (capacity, content) = state.caches.get_mut(&pass.cache.0).unwrap();
        assert!(pass.position <= content.len(), "a hole in the cache");
        content.truncate(pass.position);
        content.extend(pass.tokens.iter().map(|token| (*token, tail)));
        assert!(content.len() <= *capacity, "past the end of the cache");
        let content = content.clone();
        let (mut hash, mut rows) = (0, Vec::new());
        for (position, (token, tail)) in content.iter().enumerate() {
            hash = mix(mix(hash, u64::from(*token) + 7), *tail);
            if position >= pass.position {
                rows.push(logits(hash, state.script.get(&position).copied()));
            }
        }
        let last = rows.last().unwrap();
        Ok(match pass.want {
            Want::Nothing => Answer::Nothing,
            Want::Argmax => {
                let best = (0..VOCAB).max_by(|a, b| last[*a].total_cmp(&last[*b]).then(b.cmp(a))).unwrap();
                Answer::Token(best as u32)
            }
            Want::LastLogits => Answer::Logits(last.clone()),
            Want::AllLogits => Answer::Logits(rows.concat()),
        })
    }
}

/// A SentencePiece-style tokenizer of single letters with byte fallback: ids 3..259 are bytes, then `▁` and a to z.
pub fn tokenizer_json() -> String {
    let mut vocab = serde_json::Map::new();
    for (id, token) in ["<unk>", "<s>", "</s>"].iter().enumerate() {
        vocab.insert(token.to_string(), id.into());
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), (3 + u32::from(byte)).into());
    }
    for letter in std::iter::once('▁').chain('a'..='z') {
        let id = vocab.len();
        vocab.insert(letter.to_string(), id.into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(BOS, "<s>"), special(EOS, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []}
    })
    .to_string()
}

/// Ids of text without the blank that encoding would put before it.
pub fn ids(text: &str) -> Vec<u32> {
    let mut out = Vec::new();
    for c in text.chars() {
        match c {
            ' ' => out.push(259),
            'a'..='z' => out.push(260 + c as u32 - 'a' as u32),
            other => out.extend(other.to_string().bytes().map(|byte| 3 + u32::from(byte))),
        }
    }
    out
}

pub const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}\
                            {% if add_generation_prompt %}[assistant]{% endif %}";

/// How a test engine differs from the plain one.
pub struct Setup {
    pub template: bool,
    pub tokenizer: bool,
    pub context_size: usize,
    pub generation_config: serde_json::Value,
    pub adapter_budget: Option<u64>,
    pub prefix_budget: Option<u64>,
}

impl Default for Setup {
    fn default() -> Self {
        let generation_config = serde_json::json!({"eos_token_id": EOS});
        // Nothing outlives its use, so that tests can count what is held.
        let (adapter_budget, prefix_budget) = (Some(0), Some(0));
        Self {
            template: false,
            tokenizer: true,
            context_size: 200,
            generation_config,
            adapter_budget,
            prefix_budget,
        }
    }
}

/// An engine on the test device, and the device's state.
pub fn engine(setup: Setup) -> (Engine, Arc<Mutex<State>>) {
    let mut config = crate::common::small_config();
    config["vocab_size"] = VOCAB.into();
    let recipe = calora::arch::recipe(&config, Path::new("config.json")).unwrap();
    let model = Model {
        recipe: Arc::new(recipe),
        weights: Arc::new(Weights { matrices: Vec::new(), vectors: Vec::new() }),
    };
    let line = position_bytes(&model.recipe.shape, Activations::F32);
    let state = Arc::new(Mutex::new(State::default()));
    let info = DeviceInfo {
        kind: "cpu",
        name: "test".into(),
        detail: String::new(),
        activations: Activations::F32,
        max_tokens: MAX_TOKENS,
    };
    let tokenizer_config = TokenizerConfig {
        bos_token: Some("<s>".into()),
        eos_token: Some("</s>".into()),
        add_bos_token: None,
        chat_template: setup.template.then(|| ChatTemplate::new(TEMPLATE).unwrap()),
    };
    let tokenizer = setup.tokenizer.then(|| {
        Tokenizer::from_bytes(tokenizer_json().as_bytes(), &tokenizer_config, "tokenizer.json").unwrap()
    });
    let engine = Engine::from_parts(EngineParts {
        model,
        device: Box::new(TestDevice { info, line, state: state.clone() }),
        recovery: None,
        folder: "test".into(),
        files: None,
        scheme: "none".into(),
        tokenizer,
        tokenizer_config,
        config,
        generation_config: setup.generation_config,
        context_size: Some(setup.context_size),
        prefill_chunk: None,
        adapter_budget: setup.adapter_budget,
        prefix_budget: setup.prefix_budget,
        prefix_folder: None,
    });
    (engine.unwrap(), state)
}

/// Cancels and errors are told apart by tests.
pub fn device_error() -> Error {
    Error::DeviceLost { reason: "the test says so".into() }
}

/// A non-zero adapter of one branch.
pub fn adapter(engine: &Engine, seed: u64) -> BoundAdapter {
    let mut rng = crate::common::Random(seed);
    let mut tail = calora::adapter::Tail { branches: vec![Vec::new(); engine.recipe().linears.len()] };
    let shape = engine.recipe().linear_shape(calora::arch::LinearId(0));
    tail.branches[0].push(crate::common::random_branch(
        &mut rng,
        BranchKind::Lora,
        shape,
        2,
        DType::F32,
        1.0,
    ));
    engine.adapter(format!("task {seed}"), tail)
}
