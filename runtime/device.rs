//! What a device is: something that holds a model's weights and executes its recipe's steps.
//!
//! Two exist, [`crate::cpu`] and [`crate::gpu`]. The border is at the level of whole forward passes over a recipe, so
//! that each device may fuse, thread and lay out memory as suits it.

use std::sync::Arc;

use crate::adapter::Tail;
use crate::arch::{ModelShape, Recipe, Slot};
use crate::error::{Error, Result};
use crate::weights::Matrix;

/// A model's tensors in the order of its recipe, still in their files.
#[derive(Clone, Debug)]
pub struct Weights {
    /// One for each [`Recipe::matrices`].
    pub matrices: Vec<Matrix>,
    /// One for each [`Recipe::vectors`].
    pub vectors: Vec<Vec<f32>>,
}

impl Weights {
    /// Bytes of all matrices as stored.
    pub fn byte_len(&self) -> u64 {
        self.matrices.iter().map(|m| m.byte_len() as u64).sum()
    }
}

/// How far a model is placed on its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of matrices placed.
    pub loaded_bytes: u64,
    /// Bytes of all matrices.
    pub total_bytes: u64,
}

impl LoadProgress {
    /// From 0 to 1.
    pub fn fraction(&self) -> f64 {
        if self.total_bytes == 0 { 1.0 } else { self.loaded_bytes as f64 / self.total_bytes as f64 }
    }
}

/// Precision of the activations that meet compressed weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activations {
    /// Float32 throughout: the reference mode.
    F32,
    /// Int8 in blocks of 32 ([`crate::quant::activations`]) for compressed linears: the fast mode.
    Int8,
}

/// What a device says of itself.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// `cpu` or `gpu`.
    pub kind: &'static str,
    /// The processor's or GPU's name.
    pub name: String,
    /// Driver, backend, instruction sets: for diagnostics.
    pub detail: String,
    /// Activations in use.
    pub activations: Activations,
    /// The most tokens one forward pass takes.
    pub max_tokens: usize,
}

/// Bytes a device holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Base weights, as held by the device (a CPU device that reads the map counts the mapped bytes).
    pub weights: u64,
    /// KV caches.
    pub caches: u64,
    /// Resident adapters.
    pub tails: u64,
    /// Working memory.
    pub scratch: u64,
}

/// A KV cache on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheId(pub u64);

/// A resident adapter (or stack of them) on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TailId(pub u64);

/// The most adapters that are resident as one: their scales travel with the parameters of each pass.
pub const MOST_ADAPTERS: usize = 12;

/// Which result of a forward pass is read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: prefill of all but the last chunk.
    Nothing,
    /// The likeliest token after the last position; among equals the lowest id.
    Argmax,
    /// (vocabulary) logits after the last position.
    LastLogits,
    /// (T, vocabulary) logits after every position.
    AllLogits,
}

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// For [`Want::Nothing`].
    Nothing,
    /// For [`Want::Argmax`].
    Token(u32),
    /// For the two logits wants, row-major.
    Logits(Vec<f32>),
}

/// One forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// 1..=[`DeviceInfo::max_tokens`] ids.
    pub tokens: &'a [u32],
    /// The cache position of the first of them; positions before it hold earlier tokens.
    pub position: usize,
    /// The cache that is read and extended.
    pub cache: CacheId,
    /// The attached adapters.
    pub tail: Option<TailId>,
    /// How strongly each of them acts, in the order in which they were loaded; empty for 1 everywhere. One of scale 0 is
    /// left out, and where all are, the pass is that without a tail, to the bit.
    pub scales: &'a [f32],
    /// What to read back.
    pub want: Want,
}

/// Holds one model's weights and executes its recipe.
pub trait Device: Send {
    /// Name, driver, precision, limits.
    fn info(&self) -> &DeviceInfo;

    /// Bytes held.
    fn memory(&self) -> DeviceMemory;

    /// A cache for `positions` tokens.
    fn create_cache(&mut self, positions: usize) -> Result<CacheId>;

    /// Forgets a cache; an unknown id is ignored.
    fn drop_cache(&mut self, cache: CacheId);

    /// Makes adapters resident as one, their ranks side by side, at most [`MOST_ADAPTERS`]; refuses shapes that do not fit
    /// the model and values that are not finite.
    fn load_tails(&mut self, tails: &[&Tail]) -> Result<TailId>;

    /// [`Device::load_tails`] of one.
    fn load_tail(&mut self, tail: &Tail) -> Result<TailId> {
        self.load_tails(&[tail])
    }

    /// Forgets a resident adapter; an unknown id is ignored.
    fn drop_tail(&mut self, tail: TailId);

    /// Copies the keys and values of a cache's first `positions` positions out; each takes [`position_bytes`].
    fn read_cache(&mut self, cache: CacheId, positions: usize) -> Result<Vec<u8>>;

    /// Puts down, from position 0 on, what [`Device::read_cache`] gave, or the beginning of it. After an error the cache
    /// holds nothing that may be used.
    fn write_cache(&mut self, cache: CacheId, bytes: &[u8]) -> Result<()>;

    /// Runs the recipe over the tokens. On an error the cache before `position` is as it was.
    fn forward(&mut self, pass: &Forward<'_>) -> Result<Answer>;
}

/// Bytes of one position's keys and values outside a device: (layers, 2, KV heads * D), float32 for float activations and
/// f16 for int8 ones, whichever device computed them.
pub fn position_bytes(shape: &ModelShape, activations: Activations) -> usize {
    let element = match activations {
        Activations::F32 => 4,
        Activations::Int8 => 2,
    };
    shape.layers * 2 * shape.width(Slot::Key) * element
}

/// Checks that every device makes before it copies positions in or out; how many `bytes` hold.
pub(crate) fn check_positions(bytes: usize, line: usize, capacity: usize) -> Result<usize> {
    let positions = bytes / line.max(1);
    if positions * line != bytes {
        let reason = format!("a position takes {line} bytes");
        return Err(Error::option("bytes of a cache", bytes, reason));
    }
    if positions > capacity {
        return Err(Error::ContextFull { needed: positions, available: capacity });
    }
    Ok(positions)
}

/// Checks that every device makes before it runs a pass; `capacity` is the cache's.
pub(crate) fn check_pass(
    recipe: &Recipe,
    info: &DeviceInfo,
    pass: &Forward<'_>,
    capacity: usize,
) -> Result<()> {
    if pass.tokens.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if pass.tokens.len() > info.max_tokens {
        let reason = format!("one pass takes at most {}", info.max_tokens);
        return Err(Error::option("tokens in a pass", pass.tokens.len(), reason));
    }
    if let Some(id) = pass.tokens.iter().find(|id| **id as usize >= recipe.shape.vocab) {
        return Err(Error::TokenOutOfRange { id: *id, vocab: recipe.shape.vocab });
    }
    let needed = pass.position.saturating_add(pass.tokens.len());
    if needed > capacity {
        return Err(Error::ContextFull { needed, available: capacity });
    }
    Ok(())
}

/// Checks that every device makes before it attaches what `adapters` adapters are resident as; whether any of them acts.
pub(crate) fn check_scales(scales: &[f32], adapters: usize) -> Result<bool> {
    if !scales.is_empty() && scales.len() != adapters {
        let reason = format!("{adapters} adapters are attached, each has one");
        return Err(Error::option("scales", scales.len(), reason));
    }
    match scales.iter().find(|scale| !scale.is_finite()) {
        Some(scale) => Err(Error::option("scale", scale, "must be a finite number")),
        None => Ok(scales.is_empty() || scales.iter().any(|scale| *scale != 0.0)),
    }
}

/// The scale of one adapter of a pass.
pub(crate) fn scale_of(scales: &[f32], adapter: usize) -> f32 {
    scales.get(adapter).copied().unwrap_or(1.0)
}

/// Checks that every device makes before adapters become resident.
pub(crate) fn check_tails(recipe: &Recipe, tails: &[&Tail]) -> Result<()> {
    if tails.len() > MOST_ADAPTERS {
        let reason = format!("at most {MOST_ADAPTERS} act at once");
        return Err(Error::option("adapters", tails.len(), reason));
    }
    for tail in tails {
        check_tail(recipe, tail)?;
        let mut branches = tail.branches.iter().flatten();
        if let Some(branch) = branches.find(|branch| !branch.scaling.is_finite()) {
            return Err(Error::option("adapter scaling", branch.scaling, "must be a finite number"));
        }
    }
    Ok(())
}

/// Checks that an adapter's branches have the shapes of the model's linears.
pub(crate) fn check_tail(recipe: &Recipe, tail: &Tail) -> Result<()> {
    for (id, list) in tail.branches.iter().enumerate() {
        if id >= recipe.linears.len() {
            return Err(Error::option("linear", id, "the model has no such linear"));
        }
        let (rows, cols) = recipe.linear_shape(crate::arch::LinearId(id));
        for branch in list {
            let rank = branch.rank();
            for (side, shape) in [(&branch.down, (rank, cols)), (&branch.up, (rows, rank))] {
                if side.shape() != shape {
                    let tensor = side.tensor();
                    let reason = format!("has shape {:?}, expected {shape:?}", side.shape());
                    return Err(Error::tensor(tensor.path(), &tensor.name, reason));
                }
            }
        }
    }
    Ok(())
}

/// A recipe with its weights, shared by whoever needs both.
#[derive(Clone, Debug)]
pub struct Model {
    /// The steps.
    pub recipe: Arc<Recipe>,
    /// The tensors.
    pub weights: Arc<Weights>,
}
