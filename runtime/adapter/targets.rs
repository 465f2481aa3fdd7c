//! Which modules a PEFT configuration targets, by the matching rules of peft 0.21.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// A compiled pattern over module paths.
pub(super) struct Pattern(Regex);

impl Pattern {
    fn compile(path: &Path, field: &str, pattern: &str, source: &str) -> Result<Self> {
        // Python and this engine agree on what PEFT users write; look-around is refused by name, not misread.
        let regex = Regex::new(pattern).map_err(|e| {
            Error::malformed(path, format!("{field}: pattern {source:?} cannot be read: {e}"))
        })?;
        Ok(Self(regex))
    }

    /// The whole path must match.
    fn full(path: &Path, field: &str, pattern: &str) -> Result<Self> {
        Self::compile(path, field, &format!("^(?:{pattern})$"), pattern)
    }

    /// A key of `rank_pattern`: the path, or its end after a dot.
    pub(super) fn suffix(path: &Path, field: &str, pattern: &str) -> Result<Self> {
        // `^` inside the key anchors it at the start of the path, where the optional prefix is empty.
        Self::compile(path, field, &format!("^(.*\\.)?({pattern})$"), pattern)
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        self.0.is_match(module)
    }
}

/// A list of names (whole, or the end after a dot) or one regular expression over the whole path.
enum Names {
    All,
    List(Vec<String>),
    Pattern(Pattern),
}

impl Names {
    fn parse(path: &Path, field: &str, value: Option<&Value>) -> Result<Option<Self>> {
        Ok(match value {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) if field == "target_modules" && s.eq_ignore_ascii_case("all-linear") => {
                Some(Self::All)
            }
            Some(Value::String(s)) => Some(Self::Pattern(Pattern::full(path, field, s)?)),
            Some(Value::Array(list)) => {
                let names: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(str::to_owned)).collect();
                match names {
                    Some(names) => Some(Self::List(names)),
                    None => return Err(Error::malformed(path, format!("{field}: expected a list of names"))),
                }
            }
            Some(other) => return Err(Error::malformed(path, format!("{field} = {other}: expected names"))),
        })
    }

    fn contain(&self, module: &str) -> bool {
        match self {
            Self::All => true,
            Self::Pattern(pattern) => pattern.matches(module),
            Self::List(names) => names.iter().any(|name| {
                module == name || module.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }),
        }
    }
}

/// What `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` say together.
pub(super) struct Targets {
    targets: Option<Names>,
    excluded: Option<Names>,
    layers: Option<Vec<u64>>,
    layer_patterns: Vec<Pattern>,
}

impl Targets {
    /// Reads the four fields.
    pub(super) fn parse(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let layers = match config.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) if list.is_empty() => None,
            Some(Value::Array(list)) => Some(list.iter().filter_map(Value::as_u64).collect()),
            Some(Value::Number(n)) => Some(n.as_u64().into_iter().collect()),
            Some(other) => {
                let reason = format!("layers_to_transform = {other}: expected layer numbers");
                return Err(Error::malformed(path, reason));
            }
        };
        let names = match config.get("layers_pattern") {
            Some(Value::String(one)) if !one.is_empty() => vec![one.clone()],
            Some(Value::Array(list)) => list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        // Without a pattern the first number after any two names is the layer.
        let sources = if names.is_empty() {
            vec![r"^.*?\.[^.]*\.(\d+)\.".to_owned()]
        } else {
            names.iter().map(|n| format!(r"^(?:.*?\.)?(?:{n})\.(\d+)\.")).collect()
        };
        let layer_patterns =
            sources.iter().map(|s| Pattern::compile(path, "layers_pattern", s, s)).collect::<Result<_>>()?;
        Ok(Self {
            targets: Names::parse(path, "target_modules", config.get("target_modules"))?,
            excluded: Names::parse(path, "exclude_modules", config.get("exclude_modules"))?,
            layers,
            layer_patterns,
        })
    }

    /// Whether PEFT would put a LoRA on this module. A configuration without `target_modules` relied on PEFT's table
    /// for the architecture: then the file's tensors decide.
    pub(super) fn contain(&self, module: &str) -> bool {
        let Some(targets) = &self.targets else { return true };
        if self.excluded.as_ref().is_some_and(|names| names.contain(module)) || !targets.contain(module) {
            return false;
        }
        match (&self.layers, targets) {
            (Some(layers), Names::List(_)) => {
                let index = self
                    .layer_patterns
                    .iter()
                    .find_map(|p| p.0.captures(module)?.get(1)?.as_str().parse().ok());
                index.is_some_and(|index| layers.contains(&index))
            }
            _ => true,
        }
    }
}
