//! Which modules a PEFT configuration targets, by the matching rules of peft 0.21 (`check_target_module_exists`).
//!
//! Checked against peft itself in `tests/adapters_peft.rs`. Invariant: a pattern that the regex engine cannot evaluate
//! (look-around, back-references) is never taken for a match or a miss; whoever asks is told that it is unknown.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The shorthand for every linear but the head.
const ALL_LINEAR: &str = "all-linear";

/// A compiled pattern over module paths.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Regex);

impl Pattern {
    /// The whole path must match, as Python's `re.fullmatch`; the error is the regex engine's.
    fn full(pattern: &str) -> Result<Self, regex::Error> {
        Ok(Self(Regex::new(&format!("^(?:{pattern})$"))?))
    }

    /// A key of `rank_pattern` or `alpha_pattern`: the path, or its end after a dot. These decide numbers, so that a
    /// pattern that cannot be evaluated is refused.
    pub(super) fn suffix(path: &Path, field: &str, key: &str) -> Result<Self> {
        // `^` inside the key anchors it at the start of the path, where the optional prefix is empty.
        Regex::new(&format!("^(?:.*\\.)?(?:{key})$")).map(Self).map_err(|e| Error::UnsupportedAdapter {
            path: path.to_owned(),
            feature: format!("{field}: pattern {key:?}"),
            help: format!("write it without look-around and back-references ({})", last_line(&e)),
        })
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        self.0.is_match(module)
    }
}

/// The reason itself; the lines before it draw the pattern.
fn last_line(error: &regex::Error) -> String {
    error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// A list of names (whole, or the end after a dot) or one regular expression over the whole path.
#[derive(Clone, Debug)]
enum Names {
    AllLinear,
    List(Vec<String>),
    Pattern(Pattern),
    /// A pattern beyond the regex engine.
    Unknown(String),
}

impl Names {
    fn parse(path: &Path, field: &str, value: Option<&Value>) -> Result<Option<Self>> {
        Ok(match value {
            None | Some(Value::Null) => None,
            Some(Value::String(s)) if field == "target_modules" && s.eq_ignore_ascii_case(ALL_LINEAR) => {
                Some(Self::AllLinear)
            }
            Some(Value::String(s)) => Some(match Pattern::full(s) {
                Ok(pattern) => Self::Pattern(pattern),
                Err(e) => Self::Unknown(format!("{field} = {s:?}: {}", last_line(&e))),
            }),
            Some(Value::Array(list)) => Some(Self::List(strings(path, field, list)?)),
            Some(other) => {
                let reason = format!("{field} = {other}: expected a list of names or a pattern");
                return Err(Error::malformed(path, reason));
            }
        })
    }

    /// Whether the module is meant; `None` where that cannot be evaluated.
    fn contain(&self, module: &str) -> Option<bool> {
        Some(match self {
            Self::AllLinear => module != "lm_head",
            Self::Pattern(pattern) => pattern.matches(module),
            Self::List(names) => names.iter().any(|name| is_suffix(module, name)),
            Self::Unknown(_) => return None,
        })
    }
}

/// Whether `name` is the module's path or its end after a dot.
fn is_suffix(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

fn strings(path: &Path, field: &str, list: &[Value]) -> Result<Vec<String>> {
    let names: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(str::to_owned)).collect();
    names.ok_or_else(|| Error::malformed(path, format!("{field}: expected a list of names")))
}

/// `layers_to_transform` with `layers_pattern`.
#[derive(Clone, Debug)]
struct Layers {
    wanted: Vec<i64>,
    patterns: Vec<Regex>,
}

impl Layers {
    fn parse(path: &Path, config: &Map<String, Value>) -> Result<Option<Self>> {
        let malformed = |field: &str, value: &Value, expected: &str| {
            Err(Error::malformed(path, format!("{field} = {value}: expected {expected}")))
        };
        let names = match config.get("layers_pattern") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::String(one)) if one.is_empty() => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(list)) => strings(path, "layers_pattern", list)?,
            Some(other) => return malformed("layers_pattern", other, "names"),
        };
        let wanted = match config.get("layers_to_transform") {
            None | Some(Value::Null) => return Ok(None),
            Some(value @ Value::Array(list)) => match list.iter().map(Value::as_i64).collect() {
                Some(wanted) => wanted,
                None => return malformed("layers_to_transform", value, "layer numbers"),
            },
            Some(value) => match value.as_i64() {
                Some(one) => vec![one],
                None => return malformed("layers_to_transform", value, "layer numbers"),
            },
        };
        if wanted.is_empty() {
            return Ok(None);
        }
        let sources = if names.is_empty() {
            // The first number after any two names is the layer.
            vec![r".*?\.[^.]*\.(?P<idx>\d+)\.".to_owned()]
        } else {
            // Not grouped, as PEFT does not group it: `a|b` in a name splits the whole expression.
            names.iter().map(|n| format!(r"(?:^|.*?\.){n}\.(?P<idx>\d+)\.")).collect()
        };
        let compile = |source: &String| {
            Regex::new(&format!("^(?:{source})")).map_err(|e| Error::UnsupportedAdapter {
                path: path.to_owned(),
                feature: format!("layers_pattern {names:?}"),
                help: format!("write it without look-around and back-references ({})", last_line(&e)),
            })
        };
        Ok(Some(Self { wanted, patterns: sources.iter().map(compile).collect::<Result<_>>()? }))
    }

    fn contain(&self, module: &str) -> bool {
        // The first pattern that matches decides, also where it found no number.
        let found = self.patterns.iter().find_map(|p| p.captures(module));
        let index = found.and_then(|c| c.name("idx")?.as_str().parse().ok());
        index.is_some_and(|index| self.wanted.contains(&index))
    }
}

/// What `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern` say together.
#[derive(Clone, Debug)]
pub(super) struct Targets {
    targets: Option<Names>,
    excluded: Option<Names>,
    layers: Option<Layers>,
}

impl Targets {
    /// Reads the four fields.
    pub(super) fn parse(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let targets = Names::parse(path, "target_modules", config.get("target_modules"))?;
        let layers = Layers::parse(path, config)?;
        if layers.is_some() && !matches!(targets, None | Some(Names::List(_))) {
            let reason =
                "layers_to_transform needs a list in target_modules, not a pattern; PEFT refuses it too";
            return Err(Error::malformed(path, reason));
        }
        let excluded = Names::parse(path, "exclude_modules", config.get("exclude_modules"))?;
        Ok(Self { targets, excluded, layers })
    }

    /// Whether PEFT would put a LoRA on this module; `None` where that is not known: a pattern beyond the regex engine,
    /// or no `target_modules` at all (PEFT then has a table for each architecture).
    pub(super) fn contain(&self, module: &str) -> Option<bool> {
        let excluded = self.excluded.as_ref().map_or(Some(false), |names| names.contain(module));
        let targets = self.targets.as_ref()?;
        let named = targets.contain(module);
        if excluded == Some(true) || named == Some(false) {
            return Some(false);
        }
        let layer = match (&self.layers, targets) {
            // A whole path in the list means that module, in whatever layer.
            (Some(_), Names::List(names)) if names.iter().any(|name| name == module) => true,
            (Some(layers), Names::List(_)) => layers.contain(module),
            _ => true,
        };
        if !layer {
            return Some(false);
        }
        named.and(excluded).map(|_| true)
    }

    /// The fields that could not be evaluated, and why.
    pub(super) fn unknown(&self) -> Vec<String> {
        let unknown = |names: &Option<Names>| match names {
            Some(Names::Unknown(why)) => Some(why.clone()),
            _ => None,
        };
        [&self.targets, &self.excluded].into_iter().filter_map(unknown).collect()
    }
}
