//! From a model folder to an engine: which device, which activations, which files.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::{Engine, EngineParts, device};
use crate::arch;
use crate::device::{Model, Weights};
use crate::error::Result;
use crate::text::{Tokenizer, TokenizerConfig};
use crate::weights::{ModelFolder, Storage};

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The GPU where there is a real one, else the CPU; never a software GPU.
    #[default]
    Auto,
    /// A GPU, even a software one.
    Gpu,
    /// The CPU.
    Cpu,
}

/// Precision of the activations that meet compressed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationChoice {
    /// Int8 where weights are compressed, else float32.
    #[default]
    Auto,
    /// Float32: the reference mode.
    F32,
    /// Int8: the fast mode.
    Int8,
}

/// How a model folder is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Which device.
    pub device: DeviceChoice,
    /// Which precision.
    pub activations: ActivationChoice,
    /// Positions of a session's cache; by default the model's, at most [`super::DEFAULT_CONTEXT`].
    pub context_size: Option<usize>,
    /// Threads of the CPU device; by default one a core.
    pub threads: Option<usize>,
    /// Tokens of one prefill pass; by default [`super::DEFAULT_PREFILL_CHUNK`].
    pub prefill_chunk: Option<usize>,
}

impl Engine {
    /// Loads a Hugging Face folder, compressed or not, onto a device.
    ///
    /// The weights stay in their mapped files: the CPU computes on the map, a GPU gets one copy. A folder without
    /// `tokenizer.json` loads too; then only token ids go in and out.
    pub fn load(folder: impl AsRef<Path>, options: EngineOptions) -> Result<Self> {
        let folder = folder.as_ref();
        let files = ModelFolder::open(folder)?;
        let recipe = arch::recipe(files.config(), files.config_path())?;
        let weights = files.weights(&recipe)?;
        let scheme = scheme(&weights);
        let model = Model { recipe: Arc::new(recipe), weights: Arc::new(weights) };
        let tokenizer_config = TokenizerConfig::load(folder)?;
        let tokenizer = match folder.join("tokenizer.json").exists() {
            true => Some(Tokenizer::load(folder, &tokenizer_config)?),
            false => None,
        };
        let device = device::open(&model, &options)?;
        Self::from_parts(EngineParts {
            model,
            device,
            folder: folder.to_owned(),
            scheme,
            tokenizer,
            tokenizer_config,
            config: files.config().clone(),
            generation_config: files.generation_config().cloned().unwrap_or(Value::Null),
            context_size: options.context_size,
            prefill_chunk: options.prefill_chunk,
            files: Some(files),
        })
    }
}

/// The scheme that holds most of the weights, for people.
fn scheme(weights: &Weights) -> String {
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for matrix in &weights.matrices {
        let name = match &matrix.storage {
            Storage::Dense(tensor) => format!("{:?}", tensor.dtype).to_lowercase(),
            Storage::Packed { scheme, .. } => scheme.to_string(),
        };
        *sizes.entry(name).or_default() += matrix.rows * matrix.cols;
    }
    sizes.into_iter().max_by_key(|(_, size)| *size).map_or_else(String::new, |(name, _)| name)
}
