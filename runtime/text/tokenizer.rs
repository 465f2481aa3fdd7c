//! The tokenizer of a model folder: text to ids and ids to text.
//!
//! A thin wrapper over the `tokenizers` crate that settles what a language model needs settled: when a BOS is added, and
//! that nothing is truncated or padded. Incremental decoding is in [`super::stream`].

use std::path::{Path, PathBuf};

use super::config::TokenizerConfig;
use super::read_file;
use crate::error::{Error, Result};

/// A loaded `tokenizer.json`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// Ids before every text that begins a sequence.
    prefix: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Ids of `<0x00>`..`<0xFF>`; empty where the decoder has no byte fallback.
    byte_ids: Vec<Option<u32>>,
    size: usize,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a model folder; its companions say what the special tokens are.
    pub fn load(folder: &Path, config: &TokenizerConfig) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let Some(bytes) = read_file(&path)? else {
            return Err(Error::MissingFile {
                folder: folder.to_owned(),
                file: "tokenizer.json".into(),
                help: "text needs a tokenizer; take the file from the model's repository".into(),
            });
        };
        Self::from_bytes(&bytes, config, path)
    }

    /// Reads a `tokenizer.json` from memory; the path is for errors.
    pub fn from_bytes(bytes: &[u8], config: &TokenizerConfig, path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let failed =
            |e: tokenizers::Error| Error::Tokenizer { path: path.clone(), reason: crate::text::one_line(&e) };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(failed)?;
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        if inner.get_pre_tokenizer().is_none() {
            // Its "words" are whole texts, of which it would keep the first 10,000 short ones: tens of megabytes.
            let mut model = inner.get_model().clone();
            model.resize_cache(0);
            inner.with_model(model);
        }
        let id = |token: &Option<String>| token.as_deref().and_then(|t| inner.token_to_id(t));
        let (bos, eos) = (id(&config.bos_token), id(&config.eos_token));
        let mut prefix = template_prefix(&inner).map_err(failed)?;
        match (config.add_bos_token, bos) {
            (Some(true), Some(bos)) if !prefix.contains(&bos) => prefix.insert(0, bos),
            (Some(false), Some(bos)) => prefix.retain(|id| *id != bos),
            _ => {}
        }
        let fallback = inner
            .get_decoder()
            .and_then(|d| serde_json::to_string(d).ok())
            .is_some_and(|d| d.contains("\"ByteFallback\""));
        let byte_ids = match fallback {
            true => (0..=255u8).map(|byte| inner.token_to_id(&format!("<0x{byte:02X}>"))).collect(),
            false => Vec::new(),
        };
        let size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        Ok(Self { inner, path, prefix, bos, eos, byte_ids, size })
    }

    /// Ids of a text that begins a sequence: with the BOS where this tokenizer adds one (never a second one). Special
    /// tokens are recognised where the text spells them.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.encode_plain(text)?;
        if self.prefix.is_empty() || ids.first() == self.prefix.first() {
            return Ok(ids);
        }
        Ok([self.prefix.as_slice(), &ids].concat())
    }

    /// Ids of a text that continues a sequence, or that spells its own BOS (as chat templates do).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.failed(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of whole ids, special tokens left out; ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| self.failed(&e))
    }

    /// The id of a token by its exact text, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The exact text of a token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether [`Self::encode`] puts a BOS (or a longer prefix) before the text.
    pub fn adds_prefix(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// The highest id plus one, added tokens included; the model's vocabulary may be larger (padded).
    pub fn vocabulary_size(&self) -> usize {
        self.size
    }

    /// The byte that an id stands for, where the tokenizer falls back to bytes.
    pub(super) fn fallback_byte(&self, id: u32) -> Option<u8> {
        // At most 256 comparisons, and only while text is streamed.
        self.byte_ids.iter().position(|b| *b == Some(id)).map(|byte| byte as u8)
    }

    fn failed(&self, error: &tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: crate::text::one_line(error) }
    }
}

/// What the post-processor puts before a text; what it puts after (an EOS) would end a prompt and is left out.
fn template_prefix(inner: &tokenizers::Tokenizer) -> tokenizers::Result<Vec<u32>> {
    let plain = inner.encode_fast("a", false)?.get_ids().to_vec();
    let whole = inner.encode_fast("a", true)?.get_ids().to_vec();
    if whole.len() <= plain.len() || plain.is_empty() {
        return Ok(Vec::new());
    }
    let at = whole.windows(plain.len()).position(|w| w == plain).unwrap_or(0);
    Ok(whole[..at].to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Two words, a BOS that the post-processor adds, an EOS after the text.
    const TEMPLATE: &str = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},"padding":null,
        "added_tokens":[
            {"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
            {"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":null,"pre_tokenizer":{"type":"WhitespaceSplit"},
        "post_processor":{"type":"TemplateProcessing",
            "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"</s>","type_id":0}}],
            "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":0}}],
            "special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]},"</s>":{"id":"</s>","ids":[1],"tokens":["</s>"]}}},
        "decoder":null,"model":{"type":"WordLevel","vocab":{"<s>":0,"</s>":1,"a":2,"b":3},"unk_token":"a"}}"#;

    fn load(add_bos_token: Option<bool>) -> Tokenizer {
        let config = TokenizerConfig {
            bos_token: Some("<s>".into()),
            eos_token: Some("</s>".into()),
            add_bos_token,
            chat_template: None,
        };
        Tokenizer::from_bytes(TEMPLATE.as_bytes(), &config, "tokenizer.json").unwrap()
    }

    #[test]
    fn bos_comes_from_the_post_processor_unless_the_configuration_says_otherwise() {
        assert_eq!(load(None).encode("a b").unwrap(), [0, 2, 3]);
        assert_eq!(load(Some(true)).encode("a b").unwrap(), [0, 2, 3]);
        assert_eq!(load(Some(false)).encode("a b").unwrap(), [2, 3]);
        assert_eq!(load(None).encode("<s> a b").unwrap(), [0, 2, 3], "never a second one");
        assert_eq!(load(None).encode_plain("a b </s>").unwrap(), [2, 3, 1], "special tokens are recognised");
        assert_eq!(load(None).encode("a b a b a b").unwrap().len(), 7, "nothing is truncated");
        assert_eq!(load(None).encode("").unwrap(), [0]);
    }

    #[test]
    fn configuration_adds_a_bos_that_the_post_processor_lacks() {
        let bare = TEMPLATE.replace("{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},", "");
        let config = |add_bos_token| TokenizerConfig {
            bos_token: Some("<s>".into()),
            add_bos_token,
            ..TokenizerConfig::default()
        };
        let load = |add| Tokenizer::from_bytes(bare.as_bytes(), &config(add), "tokenizer.json").unwrap();
        assert_eq!(load(None).encode("b").unwrap(), [3]);
        assert!(!load(None).adds_prefix());
        assert_eq!(load(Some(true)).encode("b").unwrap(), [0, 3]);
    }

    #[test]
    fn ids_and_sizes() {
        let tokenizer = load(None);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(0), Some(1)));
        assert_eq!(tokenizer.vocabulary_size(), 4);
        assert_eq!(tokenizer.token_id("b"), Some(3));
        assert_eq!(tokenizer.token(3).as_deref(), Some("b"));
        assert_eq!(tokenizer.decode(&[0, 2, 3, 99]).unwrap(), "a b");
    }
}
