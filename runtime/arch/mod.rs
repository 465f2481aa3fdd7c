//! Architectures as recipes: a configuration becomes a list of steps that any device can execute.
//!
//! Invariant: no device code and no arithmetic on activations here; a recipe is plain data. To add an architecture:
//! one file beside [`llama`], one line in `ARCHITECTURES`, a golden made by `tests/golden/make.py`.

pub mod config;
pub mod llama;
pub mod recipe;

use std::path::Path;

use serde_json::Value;

pub use recipe::{
    Activation, Linear, LinearId, MatrixId, MatrixSpec, ModelShape, Output, Recipe, Rope, Slot, Step,
    VectorId, VectorSpec,
};

use crate::error::{Error, Result};

/// Builds a recipe from `config.json`; the path is for errors.
type Build = fn(&Value, &Path) -> Result<Recipe>;

/// `model_type` and who reads it.
const ARCHITECTURES: &[(&str, Build)] = &[("llama", llama::recipe)];

/// The recipe of a configuration, by its `model_type`.
pub fn recipe(config: &Value, path: &Path) -> Result<Recipe> {
    let kind = &config["model_type"];
    match ARCHITECTURES.iter().find(|(name, _)| kind.as_str() == Some(name)) {
        Some((_, build)) => build(config, path),
        None => Err(Error::UnsupportedConfig {
            path: path.to_owned(),
            field: "model_type".into(),
            value: kind.to_string(),
            reason: format!(
                "supported are {}",
                ARCHITECTURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
            ),
        }),
    }
}
