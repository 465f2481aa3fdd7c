//! What a prompt looks like, and what may stand in one.

use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use calora::text::chat::{ChatTemplate, Context};
use calora::text::{Message, Role, Tokenizer, TokenizerConfig};
use serde_json::Value;

use super::INPUTS;
use super::records::Record;

/// The shape of prompts.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// One user turn of the model's chat template, behind these instructions where there are any.
    Chat(Option<String>),
    /// The field as it is; special tokens in it are the data's own.
    Raw,
    /// A text in which `{field}` stands for a field of the row, and `{input}` for what is asked, whatever it is called.
    Template(String),
}

/// Makes prompts for one model.
pub(super) struct Prompts<'a> {
    shape: &'a Shape,
    config: &'a TokenizerConfig,
    template: Option<&'a ChatTemplate>,
    /// The BOS, where the tokenizer adds it.
    added: Option<&'a str>,
    special: Vec<String>,
}

impl<'a> Prompts<'a> {
    pub(super) fn new(
        model: &Path,
        config: &'a TokenizerConfig,
        tokenizer: &Tokenizer,
        shape: &'a Shape,
    ) -> Result<Self> {
        let template = config.chat_template.as_ref();
        if matches!(shape, Shape::Chat(_)) && template.is_none() {
            bail!("{}: this model has no chat template; say --raw or --template", model.display());
        }
        let path = model.join("tokenizer.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let json: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        let tokens = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let special = tokens.iter().filter(|token| token["special"] == true);
        let special = special.filter_map(|token| token["content"].as_str()).filter(|token| !token.is_empty());
        let added = if tokenizer.adds_prefix() { config.bos_token.as_deref() } else { None };
        Ok(Self { shape, config, template, added, special: special.map(str::to_owned).collect() })
    }

    /// A sentence without blanks around it; an error for an empty one, and for one that spells a special token, which
    /// would end its turn.
    pub(super) fn sentence(&self, text: &str) -> Result<String> {
        let text = text.trim();
        if text.is_empty() {
            bail!("an empty text (--skip-empty leaves such rows out)");
        }
        if let Some(token) = self.special.iter().find(|token| text.contains(token.as_str())) {
            bail!("the special token {token} inside a text");
        }
        Ok(text.to_owned())
    }

    /// An answer: a sentence too, but for data with its own special tokens.
    pub(super) fn answer(&self, text: &str) -> Result<String> {
        if *self.shape == Shape::Raw && !text.is_empty() { Ok(text.to_owned()) } else { self.sentence(text) }
    }

    /// The prompt of a record.
    pub(super) fn render(&self, record: &Record, input: Option<&str>) -> Result<String> {
        let asked = || record.text(input, INPUTS);
        match self.shape {
            Shape::Raw => match asked()? {
                "" => bail!("an empty text"),
                text => Ok(text.to_owned()),
            },
            Shape::Chat(system) => {
                let user = Message::new(Role::User, self.sentence(asked()?)?);
                let system = system.iter().map(|text| Message::new(Role::System, text));
                self.chat(&system.chain([user]).collect::<Vec<_>>())
            }
            Shape::Template(template) => self.fill(template, |field| match field {
                "input" => asked(),
                field => record.text(Some(field), &[]),
            }),
        }
    }

    fn chat(&self, messages: &[Message]) -> Result<String> {
        let template = self.template.context("this model has no chat template")?;
        let context = Context {
            bos_token: self.config.bos_token.as_deref().unwrap_or_default(),
            eos_token: self.config.eos_token.as_deref().unwrap_or_default(),
            add_generation_prompt: true,
            now: SystemTime::now(),
        };
        let text = template.render(messages, context)?;
        Ok(self.added.and_then(|bos| text.strip_prefix(bos)).unwrap_or(&text).to_owned())
    }

    fn fill<'r>(&self, template: &str, value: impl Fn(&str) -> Result<&'r str>) -> Result<String> {
        let (mut out, mut rest, mut fields) = (String::new(), template, 0);
        while let Some((before, after)) = rest.split_once('{') {
            let Some((field, after)) = after.split_once('}') else {
                bail!("--template {template:?}: a brace without its end");
            };
            out += before;
            out += &self.sentence(value(field)?)?;
            (rest, fields) = (after, fields + 1);
        }
        if fields == 0 {
            bail!("--template {template:?} holds no {{input}} and no other {{field}}");
        }
        Ok(out + rest)
    }
}
