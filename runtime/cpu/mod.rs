//! The CPU device: a recipe's steps in native code, threaded by rows, weights read straight from their files.
//!
//! It is the oracle that GPU kernels are tested against and the fallback where no GPU is usable. Invariant: what a token
//! yields does not depend on the tokens that share its pass, nor on the passes that share its batch: chunked prefill,
//! reused prefixes and batches are exact.

mod attend;
mod cache;
mod dot;
mod input;
mod math;
mod matmul;
mod norm;
mod observe;
pub(crate) mod plan;
mod rope;
mod run;
mod tail;
mod threads;

use std::collections::HashMap;
use std::ops::Range;

pub use dot::Simd;
pub use observe::{Inputs, Observer, Stage};

use crate::adapter::Tail;
use crate::device::{
    Activations, Answer, CacheId, Device, DeviceInfo, DeviceMemory, Forward, Model, TailId, by_tail,
    check_passes, check_positions, check_scales, check_tails, in_order, position_bytes,
};
use crate::error::{Error, Result};
use cache::Cache;
use dot::Kernels;
use matmul::Projection;
use plan::Sizes;
use run::{Run, Scratch, Sequence};
use tail::ResidentTail;
use threads::Workers;

/// How a CPU device computes.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads; `None` for as many as the machine runs at once.
    pub threads: Option<usize>,
    /// Precision of the activations that meet compressed weights; also of the KV cache (float32 or half).
    pub activations: Activations,
    /// The most tokens one pass takes.
    pub max_tokens: usize,
    /// Instruction set; `None` for the best that the machine has.
    pub simd: Option<Simd>,
}

/// A model on the CPU.
pub struct CpuDevice {
    model: Model,
    info: DeviceInfo,
    projections: Vec<Projection>,
    kernels: Kernels,
    workers: Workers,
    caches: HashMap<CacheId, Cache>,
    tails: HashMap<TailId, ResidentTail>,
    scratch: Scratch,
    /// What the scratch holds at least when a pass begins.
    sizes: Sizes,
    /// Ids are never given twice, so that a stale one cannot name somebody else's cache.
    next_id: u64,
}

impl CpuDevice {
    /// Checks the model's tensors against its recipe and the options against the machine; reads no weights but scales.
    pub fn new(model: &Model, options: CpuOptions) -> Result<Self> {
        if options.max_tokens == 0 {
            return Err(Error::option("max_tokens", 0, "a pass takes at least one token"));
        }
        check_model(model)?;
        let simd = options.simd.unwrap_or_else(Simd::best);
        let Some(kernels) = simd.kernels() else {
            let reason = format!("this machine has {:?}", Simd::available());
            return Err(Error::option("simd", format!("{simd:?}"), reason));
        };
        let workers = Workers::new(options.threads)?;
        let projections =
            model.weights.matrices.iter().cloned().map(Projection::new).collect::<Result<_>>()?;
        let sizes = Sizes::new(model, options.activations, options.max_tokens);
        let mut scratch = Scratch::default();
        scratch.reserve(&sizes)?;
        let info = DeviceInfo {
            kind: "cpu",
            name: processor(),
            detail: format!("{} {simd:?}, {} threads", std::env::consts::ARCH, workers.threads),
            activations: options.activations,
            max_tokens: options.max_tokens,
        };
        Ok(Self {
            model: model.clone(),
            info,
            projections,
            kernels,
            workers,
            caches: HashMap::new(),
            tails: HashMap::new(),
            scratch,
            sizes,
            next_id: 0,
        })
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Runs some of the recipe's steps.
    fn run(
        &mut self,
        passes: &[Forward<'_>],
        steps: Range<usize>,
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Answer>> {
        check_passes(&self.model.recipe, &self.info, passes, |id| {
            self.caches.get(&id).map(|cache| cache.capacity).ok_or_else(|| unknown("cache", id.0))
        })?;
        self.scratch.reserve(&self.sizes)?;
        let order = by_tail(passes);
        let mut caches: HashMap<CacheId, &mut Cache> =
            self.caches.iter_mut().map(|(id, cache)| (*id, cache)).collect();
        let mut sequences = Vec::with_capacity(passes.len());
        for pass in order.iter().map(|i| &passes[*i]) {
            let tail = match pass.tail {
                Some(id) => Some(self.tails.get(&id).ok_or_else(|| unknown("tail", id.0))?),
                None => None,
            };
            let cache = caches.remove(&pass.cache).ok_or_else(|| unknown("cache", pass.cache.0))?;
            let tail = match tail {
                Some(tail) if check_scales(pass.scales, tail.adapters)? => Some((tail, pass.scales)),
                _ => None,
            };
            let Forward { tokens, position, want, .. } = *pass;
            sequences.push(Sequence { tail, cache, tokens, position, want });
        }
        let run = Run {
            recipe: &self.model.recipe,
            weights: &self.model.weights,
            projections: &self.projections,
            kernels: &self.kernels,
            workers: &self.workers,
            activations: self.info.activations,
            passes: sequences,
            steps,
            observer,
        };
        let scratch = &mut self.scratch;
        Ok(in_order(&order, self.workers.enter(|| run.run(scratch))))
    }
}

impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory {
            weights: plan::weights(&self.model.weights),
            caches: self.caches.values().map(|c| c.bytes).sum(),
            tails: self.tails.values().map(|t| t.bytes).sum(),
            scratch: self.scratch.byte_len() as u64,
        }
    }

    fn create_cache(&mut self, positions: usize) -> Result<CacheId> {
        let cache = Cache::new(&self.model.recipe.shape, positions, self.info.activations)?;
        let id = CacheId(self.new_id());
        self.caches.insert(id, cache);
        Ok(id)
    }

    fn drop_cache(&mut self, cache: CacheId) {
        self.caches.remove(&cache);
    }

    fn load_tails(&mut self, tails: &[&Tail]) -> Result<TailId> {
        check_tails(&self.model.recipe, tails)?;
        let resident = ResidentTail::new(tails, self.info.activations)?;
        let id = TailId(self.new_id());
        self.tails.insert(id, resident);
        Ok(id)
    }

    fn drop_tail(&mut self, tail: TailId) {
        self.tails.remove(&tail);
    }

    fn tail_bytes(&self, tails: &[&Tail]) -> u64 {
        plan::tail_bytes(tails, self.info.activations)
    }

    fn trim(&mut self) {
        self.scratch = Scratch::default();
    }

    fn read_cache(&mut self, cache: CacheId, positions: usize) -> Result<Vec<u8>> {
        let line = position_bytes(&self.model.recipe.shape, self.info.activations);
        let cache = self.caches.get(&cache).ok_or_else(|| unknown("cache", cache.0))?;
        let bytes = positions.saturating_mul(line);
        check_positions(bytes, line, cache.capacity)?;
        let mut out = Vec::with_capacity(bytes);
        cache.read(positions, &mut out);
        Ok(out)
    }

    fn write_cache(&mut self, cache: CacheId, bytes: &[u8]) -> Result<()> {
        let line = position_bytes(&self.model.recipe.shape, self.info.activations);
        let cache = self.caches.get_mut(&cache).ok_or_else(|| unknown("cache", cache.0))?;
        cache.write(check_positions(bytes.len(), line, cache.capacity)?, bytes);
        Ok(())
    }

    fn forward_batch(&mut self, passes: &[Forward<'_>]) -> Result<Vec<Answer>> {
        self.run(passes, 0..self.model.recipe.steps.len(), None)
    }
}

fn unknown(what: &str, id: u64) -> Error {
    Error::option(what, id, "this device holds none of that id")
}

/// Refuses tensors that are not those of the recipe: every later index relies on it.
fn check_model(model: &Model) -> Result<()> {
    let (recipe, weights) = (&model.recipe, &model.weights);
    let counts = [
        ("matrices", weights.matrices.len(), recipe.matrices.len()),
        ("vectors", weights.vectors.len(), recipe.vectors.len()),
    ];
    for (what, found, expected) in counts {
        if found != expected {
            return Err(Error::option(what, found, format!("the recipe lists {expected}")));
        }
    }
    for (matrix, spec) in weights.matrices.iter().zip(&recipe.matrices) {
        if (matrix.rows, matrix.cols) != (spec.rows, spec.cols) {
            let tensor = matrix.tensor();
            let reason = format!("is {}x{}, expected {}x{}", matrix.rows, matrix.cols, spec.rows, spec.cols);
            return Err(Error::tensor(tensor.path(), &tensor.name, reason));
        }
    }
    for (vector, spec) in weights.vectors.iter().zip(&recipe.vectors) {
        if vector.len() != spec.len {
            return Err(Error::option(&spec.name, vector.len(), format!("expected {} elements", spec.len)));
        }
    }
    Ok(())
}

/// What the system calls the processor.
fn processor() -> String {
    let file = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = file.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
