//! Routes as an app states them, or as a file beside a trained adapter does.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Fewer examples in all do not tell what is usual.
const LEAST_EXAMPLES: usize = 8;

/// A task that requests may be for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// What the app calls it: an adapter's name, say.
    pub name: String,
    /// What the model answers to such a request: the label that it was trained to give, or a description.
    pub answer: String,
    /// Requests of this kind. They tell the router what is like nothing it knows; a pass each when it is made, unless the
    /// engine has kept what they gave ([`Router::measure`](super::Router::measure)).
    pub examples: Vec<String>,
}

/// Reads routes from a JSON file: a list of `{"name", "answer", "examples"}`, the examples optional.
pub fn read_routes(path: impl AsRef<Path>) -> Result<Vec<Route>> {
    let path = path.as_ref();
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| Error::malformed(path, e))?;
    let wrong =
        || Error::malformed(path, "must be a list of {\"name\", \"answer\", \"examples\"}, all texts");
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
    let route = |value: &Value| {
        let examples = match &value["examples"] {
            Value::Null => Vec::new(),
            list => list.as_array().ok_or_else(wrong)?.iter().map(text).collect::<Result<_>>()?,
        };
        Ok(Route { name: text(&value["name"])?, answer: text(&value["answer"])?, examples })
    };
    value.as_array().ok_or_else(wrong)?.iter().map(route).collect()
}

/// Refuses what cannot be told apart.
pub(super) fn check(routes: &[Route]) -> Result<()> {
    if routes.len() < 2 {
        return Err(Error::option("routes", routes.len(), "give at least two"));
    }
    let (mut names, mut answers) = (HashSet::new(), HashSet::new());
    for route in routes {
        if route.answer.is_empty() {
            return Err(Error::option("answer", &route.name, "this route has none"));
        }
        if !names.insert(&route.name) || !answers.insert(&route.answer) {
            return Err(Error::option("routes", &route.name, "another route has this name or this answer"));
        }
    }
    let count = examples(routes).len();
    if (1..LEAST_EXAMPLES).contains(&count) {
        let reason = format!("give at least {LEAST_EXAMPLES} different ones in all, or none");
        return Err(Error::option("examples", count, reason));
    }
    Ok(())
}

/// All examples, each once: one that stands twice would look like two that are near.
pub(super) fn examples(routes: &[Route]) -> Vec<&str> {
    let mut known = HashSet::new();
    let all = routes.iter().flat_map(|route| &route.examples).map(|text| text.trim());
    all.filter(|text| !text.is_empty() && known.insert(*text)).collect()
}
