//! Chat templates: a conversation to the text that a model was trained to see, as Hugging Face renders it.
//!
//! Templates are programs from strangers: they get no files and no loader, and a budget of steps. A model without a
//! template gets none: guessing one would quietly cost quality.

use std::sync::Arc;
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};

use super::clock::strftime;
use crate::error::{Error, Result};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that templates compare with.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// What a template sees besides the conversation.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Text of the BOS token.
    pub bos_token: &'a str,
    /// Text of the EOS token.
    pub eos_token: &'a str,
    /// Whether the assistant's turn is opened at the end.
    pub add_generation_prompt: bool,
    /// The time for templates that print the date (UTC).
    pub now: SystemTime,
}

/// Steps a template may take; real ones need some hundreds a message.
const FUEL: u64 = 10_000_000;

/// A compiled chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
}

impl ChatTemplate {
    /// Compiles a template; a syntax error is reported here.
    pub fn new(source: &str) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        // Template text is a prompt, not HTML, whatever it is called.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned("chat", without_generation_tags(source)).map_err(failed)?;
        Ok(Self { environment: Arc::new(environment) })
    }

    /// The prompt of a conversation.
    pub fn render(&self, messages: &[Message], context: Context<'_>) -> Result<String> {
        let now = context.now;
        let strftime_now = Value::from_function(move |format: String| {
            strftime(&format, now).map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, e))
        });
        let turns: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.name()), ("content", m.content.as_str())]))
            .collect();
        let values = minijinja::context! {
            messages => turns,
            add_generation_prompt => context.add_generation_prompt,
            bos_token => context.bos_token,
            eos_token => context.eos_token,
            tools => Value::from(()),
            documents => Value::from(()),
            strftime_now => strftime_now,
        };
        self.environment.get_template("chat").and_then(|t| t.render(values)).map_err(failed)
    }
}

fn failed(error: minijinja::Error) -> Error {
    Error::ChatTemplate { reason: super::one_line(&error) }
}

/// How templates refuse a conversation (roles that do not alternate, no place for a system message).
fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// `json.dumps(value, ensure_ascii=False, indent=...)`: unlike Jinja's own filter it escapes no HTML.
fn tojson(value: Value, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let json = serde_json::to_value(&value)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    dump(&json, indent.map(|n| n.min(16)), 0, &mut out);
    Ok(out)
}

/// Python's spelling: `", "` and `": "`, or one item a line with an indent.
fn dump(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        serde_json::Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                *out += if i > 0 { separator } else { "" };
                line(depth + 1, out);
                dump(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push(']');
        }
        serde_json::Value::Object(map) if !map.is_empty() => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                *out += if i > 0 { separator } else { "" };
                line(depth + 1, out);
                *out += &serde_json::Value::from(key.as_str()).to_string();
                *out += ": ";
                dump(item, indent, depth + 1, out);
            }
            line(depth, out);
            out.push('}');
        }
        other => *out += &other.to_string(),
    }
}

/// Hugging Face's `{% generation %}` marks the assistant's text for training and prints nothing; Jinja does not know
/// it, so it becomes a block that is always shown, with its whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out += before;
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let inner = &tag[2..tag.len() - 2];
        let word = inner.trim_matches(['-', '+']).trim();
        match word {
            "generation" => out += &tag.replace("generation", "if true"),
            "endgeneration" => out += &tag.replace("endgeneration", "endif"),
            _ => out += tag,
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn render(source: &str, messages: &[Message]) -> Result<String> {
        let context = Context {
            bos_token: "<s>",
            eos_token: "</s>",
            add_generation_prompt: true,
            now: SystemTime::UNIX_EPOCH,
        };
        ChatTemplate::new(source)?.render(messages, context)
    }

    fn hello() -> [Message; 2] {
        [Message::new(Role::System, "Be <brief>."), Message::new(Role::User, " Héllo \"you\" ")]
    }

    #[test]
    fn messages_tokens_and_the_generation_prompt() {
        let source = "{{ bos_token }}{% for m in messages %}\n<{{ m.role }}>{{ m['content'] | trim }}{{ eos_token }}\n\
                      {% endfor %}\n{% if add_generation_prompt %}\n<assistant>\n{% endif %}\n";
        let expected = "<s><system>Be <brief>.</s>\n<user>Héllo \"you\"</s>\n<assistant>\n";
        assert_eq!(render(source, &hello()).unwrap(), expected);
    }

    #[test]
    fn python_methods_and_json() {
        let source = "{{ messages[1].content.strip().split(' ')[0].upper() }} {{ messages[0] | tojson }} {{ [1, {'a': none}] | tojson(indent=2) }}";
        let expected = "HÉLLO {\"role\": \"system\", \"content\": \"Be <brief>.\"} [\n  1,\n  {\n    \"a\": null\n  }\n]";
        assert_eq!(render(source, &hello()).unwrap(), expected);
        assert_eq!(render("{{ true }} {{ none }} {{ missing }}|", &[]).unwrap(), "True None |");
    }

    #[test]
    fn generation_blocks_loops_and_dates() {
        let source = "{%- for m in messages -%}{%- generation -%} [{{ loop.index }}] {%- endgeneration -%}\
                      {%- if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %} {{ strftime_now('%d %b %Y') }}";
        assert_eq!(render(source, &hello()).unwrap(), "[1][2] 01 Jan 1970");
    }

    #[test]
    fn refusals_and_defects_are_typed() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(
            matches!(&refused, Error::ChatTemplate { reason } if reason.contains("roles must alternate"))
        );
        for bad in ["{% for %}", "{{ 1 + }}", "{% endgeneration %}", "{{ strftime_now('%Q') }}"] {
            assert!(matches!(render(bad, &[]), Err(Error::ChatTemplate { .. })), "{bad}");
        }
        let endless = "{% for i in range(9999) %}{% for j in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(matches!(render(endless, &[]), Err(Error::ChatTemplate { .. })));
    }
}
