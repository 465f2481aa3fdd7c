//! The models, rows and adapters that a training job names, opened and checked.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use burn::tensor::{DType, Device};
use calora::adapter::{Tail, TaskAdapter};
use calora::arch::{LinearId, Recipe, Step};
use calora::device::Weights;
use calora::text::{Tokenizer, TokenizerConfig};
use calora::weights::{BaseIds, ModelFolder};

use super::data::Encoder;
use super::forward::Plan;
use super::frozen::Frozen;
use super::memory::Budget;

/// An opened model folder.
pub struct Base {
    /// Its files.
    pub folder: ModelFolder,
    /// Its steps.
    pub recipe: Arc<Recipe>,
    /// Its tensors, in their files.
    pub weights: Arc<Weights>,
    /// Its ids.
    pub ids: BaseIds,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl Base {
    /// Opens a model folder with its tokenizer.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = ModelFolder::open(path)?;
        let recipe = Arc::new(calora::arch::recipe(folder.config(), folder.config_path())?);
        let weights = Arc::new(folder.weights(&recipe)?);
        let tokenizer = Tokenizer::load(path, &TokenizerConfig::load(path)?)?;
        let ids = folder.ids()?;
        Ok(Self { folder, recipe, weights, ids, tokenizer })
    }

    /// Turns rows into examples of at most `max_length` tokens.
    pub fn encoder(&self, max_length: usize) -> Encoder<'_> {
        Encoder { tokenizer: &self.tokenizer, max_length, vocab: self.recipe.shape.vocab }
    }

    /// As constants of a training device, as many kept as `memory` bytes leave room for beside batches of this many
    /// tokens.
    pub fn frozen(&self, device: &Device, dtype: DType, tokens: usize, memory: u64) -> Result<Frozen> {
        let budget = Budget::plan(&self.recipe, &Plan::new(&self.recipe)?, tokens, memory);
        Ok(Frozen::new(self.recipe.clone(), self.weights.clone(), device, dtype, budget.weights))
    }

    /// An adapter for this model, LoRA branches only.
    pub fn lora(&self, path: &Path) -> Result<(TaskAdapter, Tail)> {
        let adapter = TaskAdapter::open(path)?;
        if adapter.has_recovery() {
            bail!(
                "{}: has recovery branches, which belong to one compressed model; name the LoRA that it came from",
                path.display()
            );
        }
        let (tail, _) = adapter.bind(&self.recipe, &self.ids)?;
        Ok((adapter, tail))
    }

    /// The id of these very weights.
    pub fn id(&self) -> Option<&str> {
        self.ids.compressed.as_deref().or(self.ids.source.as_deref())
    }
}

/// The linears of the layers: all but the head.
pub fn layer_linears(recipe: &Recipe) -> Vec<LinearId> {
    let head = recipe.steps.len().saturating_sub(1);
    let steps = recipe.steps.iter().take(head);
    let linears = steps.filter_map(|step| match step {
        Step::Project { linears, .. } => Some(linears.as_slice()),
        _ => None,
    });
    linears.flatten().copied().collect()
}

/// Refuses a compressed folder that was not made from this base.
pub fn check_pair(base: &Base, compressed: &Base) -> Result<()> {
    let (a, b) = (base.folder.path().display(), compressed.folder.path().display());
    if base.folder.quantization().is_some() {
        bail!("{a}: is compressed itself; BASE is the uncompressed model that the LoRA was trained on");
    }
    if (&base.recipe.shape, &base.recipe.linears) != (&compressed.recipe.shape, &compressed.recipe.linears) {
        bail!("{b} was not made from {a}: their shapes differ");
    }
    let source = compressed.ids.source.as_deref();
    if let (Some(source), Some(id)) = (source, base.ids.source.as_deref())
        && source != id
    {
        bail!("{b} was made from another model ({source}) than {a} ({id})");
    }
    let tokenizer = |path: &Path| -> Result<Vec<u8>> {
        let file = path.join("tokenizer.json");
        std::fs::read(&file).with_context(|| file.display().to_string())
    };
    if tokenizer(base.folder.path())? != tokenizer(compressed.folder.path())? {
        bail!(
            "{a} and {b} have different tokenizers; copy the base's tokenizer.json beside the compressed weights"
        );
    }
    Ok(())
}
