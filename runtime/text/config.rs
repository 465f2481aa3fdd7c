//! `tokenizer_config.json` and its companions: names of the special tokens, whether a BOS is added, chat templates.
//!
//! Every file is optional; what is absent is left to `tokenizer.json`.

use std::path::Path;

use serde_json::Value;

use super::chat::ChatTemplate;
use super::{read_file, read_json};
use crate::error::{Error, Result};

/// What a model folder says about its tokenizer besides `tokenizer.json`.
#[derive(Clone, Debug, Default)]
pub struct TokenizerConfig {
    /// Text of the token that begins a sequence.
    pub bos_token: Option<String>,
    /// Text of the token that ends one.
    pub eos_token: Option<String>,
    /// Whether a BOS is put before encoded text; `None` leaves it to the post-processor of `tokenizer.json`.
    pub add_bos_token: Option<bool>,
    /// The chat template.
    pub chat_template: Option<ChatTemplate>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja` of a folder.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let config = read_json(&path)?.unwrap_or(Value::Null);
        let map = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or(Value::Null);
        let token = |name: &str| token_text(&config[name]).or_else(|| token_text(&map[name]));
        Ok(Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            add_bos_token: config["add_bos_token"].as_bool(),
            chat_template: chat_template(folder, &path, &config["chat_template"])?,
        })
    }
}

/// A special token is a string, or an object with its `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
}

/// `chat_template.jinja` wins over the configuration's field, as in transformers.
fn chat_template(folder: &Path, path: &Path, field: &Value) -> Result<Option<ChatTemplate>> {
    let jinja = folder.join("chat_template.jinja");
    if let Some(bytes) = read_file(&jinja)? {
        let source = String::from_utf8(bytes).map_err(|e| Error::malformed(&jinja, e))?;
        return ChatTemplate::new(&source).map(Some);
    }
    let source = match field {
        Value::Null => None,
        Value::String(source) => Some(source.as_str()),
        // A list of `{name, template}`; the one called `default` is for plain conversations.
        Value::Array(list) => {
            let named = |name: &str| list.iter().find(|t| t["name"] == name)?["template"].as_str();
            let only = || if list.len() == 1 { list[0]["template"].as_str() } else { None };
            let found = named("default").or_else(only);
            if found.is_none() {
                return Err(Error::malformed(path, "chat_template has no template called default"));
            }
            found
        }
        _ => return Err(Error::malformed(path, "chat_template is neither a string nor a list of templates")),
    };
    source.map(ChatTemplate::new).transpose()
}
