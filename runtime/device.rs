//! What a device is: something that holds a model's weights and executes its recipe's steps.
//!
//! Two exist, [`crate::cpu`] and [`crate::gpu`]. The border is at the level of whole forward passes over a recipe, so
//! that each device may fuse, thread and lay out memory as suits it.

use std::sync::Arc;

use serde_json::json;

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

/// What a model is going to take on a device, known before it is placed there: [`DeviceMemory`] foretold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// `cpu` or `gpu`.
    pub(crate) kind: &'static str,
    /// The device's name.
    pub(crate) device: String,
    /// Base weights.
    pub(crate) weights: u64,
    /// Working memory.
    pub(crate) scratch: u64,
    /// More of it for each session that shares a pass with others, with adapters of its own of up to 64 ranks a linear.
    pub(crate) batch_row: u64,
    /// Buffers of a cache, all alike.
    pub(crate) cache_buffers: u64,
    /// Bytes of one position in each of them.
    pub(crate) position: u64,
    /// Bytes that a buffer is a multiple of.
    pub(crate) align: u64,
    /// The most bytes of a buffer.
    pub(crate) largest_buffer: Option<u64>,
    /// Whether all of this lies in the memory that the system speaks of.
    pub(crate) in_system_memory: bool,
}

impl Footprint {
    /// Bytes of a cache for so many positions.
    pub(crate) fn cache(&self, positions: usize) -> u64 {
        let buffer = self.position.saturating_mul(positions as u64);
        let buffer = buffer.checked_next_multiple_of(self.align.max(1)).unwrap_or(u64::MAX);
        buffer.saturating_mul(self.cache_buffers)
    }
}

/// What a GPU's self-test found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceFacts {
    /// Its name.
    pub device: String,
    /// Interface, driver, capabilities.
    pub detail: String,
    /// Every kernel that was tried, by name.
    pub kernels: Vec<KernelFact>,
    /// How many of them were known from an earlier start.
    pub kept: usize,
    /// Kernels that were to be tried when time ran out.
    pub untested: usize,
    /// Seconds that trying and timing took this time.
    pub seconds: f64,
    /// Bytes of compiled pipelines that are kept; 0 where the driver hands out none.
    pub pipeline_bytes: u64,
}

impl DeviceFacts {
    /// The kernels that may not be used.
    pub fn failures(&self) -> impl Iterator<Item = &KernelFact> {
        self.kernels.iter().filter(|fact| fact.failure.is_some())
    }

    /// All of it, for people and programs far away.
    pub fn to_json(&self) -> serde_json::Value {
        let failed = self.failures().count();
        let kernel = |k: &KernelFact| {
            json!({
                "kernel": k.kernel, "passed": k.failure.is_none(), "failure": k.failure, "error": k.error,
                "micros": k.micros, "chosen": k.chosen
            })
        };
        json!({
            "gpu": self.device, "detail": self.detail, "passed": self.kernels.len() - failed, "failed": failed,
            "untested": self.untested, "kept": self.kept, "seconds": self.seconds,
            "pipeline_bytes": self.pipeline_bytes,
            "kernels": self.kernels.iter().map(kernel).collect::<Vec<_>>()
        })
    }
}

/// What a self-test found of one kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelFact {
    /// Its parts in words.
    pub kernel: String,
    /// Why it is not used; none where it computes rightly.
    pub failure: Option<String>,
    /// The largest error, as a fraction of the largest value.
    pub error: f64,
    /// Microseconds of one dispatch on a phone's sizes, where they were taken.
    pub micros: Option<f64>,
    /// Whether the device uses it.
    pub chosen: bool,
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

    /// What its self-test found, where it has one that was asked for.
    fn facts(&self) -> Option<DeviceFacts> {
        None
    }

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

    /// Bytes that adapters are going to take when they are resident as one, from their shapes and types; at most.
    fn tail_bytes(&self, tails: &[&Tail]) -> u64 {
        tails.iter().map(|tail| tail.byte_len() as u64).sum()
    }

    /// Gives back working memory that the next pass can make again.
    fn trim(&mut self) {}

    /// Copies the keys and values of a cache's first `positions` positions out; each takes [`position_bytes`].
    fn read_cache(&mut self, cache: CacheId, positions: usize) -> Result<Vec<u8>>;

    /// Puts down, from position 0 on, what [`Device::read_cache`] gave, or the beginning of it. After an error the cache
    /// holds nothing that may be used.
    fn write_cache(&mut self, cache: CacheId, bytes: &[u8]) -> Result<()>;

    /// Runs the recipe once over the tokens of all passes, each with its own cache, position, adapter and result, so that
    /// base weights are read once for all of them. One answer for each pass, in their order.
    ///
    /// No cache may be there twice, and together they may have [`DeviceInfo::max_tokens`] tokens. What a pass yields is
    /// what it yields alone: bit for bit on the CPU, within the rounding of its kernels on the GPU. On an error every
    /// cache before its pass's `position` is as it was.
    fn forward_batch(&mut self, passes: &[Forward<'_>]) -> Result<Vec<Answer>>;

    /// One pass alone.
    fn forward(&mut self, pass: &Forward<'_>) -> Result<Answer> {
        let answers = self.forward_batch(std::slice::from_ref(pass))?;
        Ok(answers.into_iter().next().unwrap_or(Answer::Nothing))
    }
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

/// Checks that every device makes before it runs passes; `capacity` is that of a cache.
pub(crate) fn check_passes(
    recipe: &Recipe,
    info: &DeviceInfo,
    passes: &[Forward<'_>],
    capacity: impl Fn(CacheId) -> Result<usize>,
) -> Result<()> {
    let tokens: usize = passes.iter().map(|pass| pass.tokens.len()).sum();
    if tokens > info.max_tokens {
        let reason = format!("one pass takes at most {}", info.max_tokens);
        return Err(Error::option("tokens in a pass", tokens, reason));
    }
    for (i, pass) in passes.iter().enumerate() {
        if pass.tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if let Some(id) = pass.tokens.iter().find(|id| **id as usize >= recipe.shape.vocab) {
            return Err(Error::TokenOutOfRange { id: *id, vocab: recipe.shape.vocab });
        }
        let (needed, available) = (pass.position.saturating_add(pass.tokens.len()), capacity(pass.cache)?);
        if needed > available {
            return Err(Error::ContextFull { needed, available });
        }
        if passes[..i].iter().any(|other| other.cache == pass.cache) {
            return Err(Error::option(
                "cache",
                pass.cache.0,
                "two passes of a batch cannot extend it at once",
            ));
        }
    }
    Ok(())
}

/// The order in which passes are computed: those with the same adapter side by side.
pub(crate) fn by_tail(passes: &[Forward<'_>]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..passes.len()).collect();
    order.sort_by_key(|i| passes[*i].tail.map(|tail| tail.0));
    order
}

/// What was computed in this order, in the order it was asked in.
pub(crate) fn in_order(order: &[usize], answers: Vec<Answer>) -> Vec<Answer> {
    let mut placed: Vec<(usize, Answer)> = order.iter().copied().zip(answers).collect();
    placed.sort_by_key(|(i, _)| *i);
    placed.into_iter().map(|(_, answer)| answer).collect()
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
