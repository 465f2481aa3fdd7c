//! The GPU device over wgpu: the only folder that names its types.
//!
//! A model's weights lie in GPU memory as in their files. A forward pass becomes one list of dispatches, one submit and
//! one readback. Bind group 0 is the base model and never changes; group 1 is the adapter, so a hot swap picks other
//! groups that were made when the adapter became resident; group 2 is working memory. Which kernels run follows from
//! [`Caps`], facts of the device that tests may mask.
//!
//! Invariant: no call panics on an error of the GPU; after a device is lost every call says so.

mod cache;
mod context;
mod examine;
mod facts;
mod forward;
mod matrix;
mod options;
mod pipeline;
pub(crate) mod plan;
mod record;
mod scratch;
mod select;
mod tail;

use std::collections::HashMap;
use std::sync::Arc;

pub use crate::kernels::{Caps, Family};
pub use facts::{FactsOptions, Timing};
pub use options::{CapsMask, GpuOptions, ShaderSource, shaders};
pub use select::{GpuAdapterInfo, GpuChoice};

use crate::adapter::Tail;
use crate::arch::{MatrixId, Recipe, Step, VectorId};
use crate::device::{
    Activations, Answer, CacheId, Device, DeviceFacts, DeviceInfo, DeviceMemory, Forward, Model, TailId,
    by_tail, check_passes, check_positions, check_scales, check_tails, in_order, position_bytes,
};
use crate::error::{Error, Result};
use crate::kernels::attention::MAX_DIM;
use crate::kernels::project::Phase;
use crate::kernels::{BLOCK, Binding, Width};
use cache::{GpuCache, Lines};
use context::Context;
use facts::Facts;
use forward::Batch;
use matrix::GpuMatrix;
use pipeline::Pipelines;
use scratch::Scratch;
use tail::{GpuTail, TailOptions};

/// A model on a GPU.
pub struct GpuDevice {
    context: Context,
    pipelines: Pipelines,
    facts: Facts,
    caps: Caps,
    width: Width,
    model: Model,
    info: DeviceInfo,
    matrices: Vec<GpuMatrix>,
    /// Group 0 of each linear, by part.
    linears: Vec<Vec<wgpu::BindGroup>>,
    /// Group 0 of each embedding table, by part.
    tables: HashMap<MatrixId, Vec<wgpu::BindGroup>>,
    /// Group 0 of each norm.
    norms: HashMap<VectorId, wgpu::BindGroup>,
    no_norm: wgpu::BindGroup,
    vector_bytes: u64,
    scratch: Scratch,
    caches: HashMap<CacheId, GpuCache>,
    tails: HashMap<TailId, Arc<GpuTail>>,
    /// Ids are never given twice, so that a stale one cannot name somebody else's cache.
    next_id: u64,
    dispatches: usize,
}

impl GpuDevice {
    /// Opens a GPU and places the model's weights on it.
    pub fn new(model: &Model, options: GpuOptions) -> Result<Self> {
        Self::with_progress(model, options, &mut |_| Ok(()))
    }

    /// [`GpuDevice::new`]; `report` is told how many bytes of weights are placed, and its error ends the work.
    pub fn with_progress(
        model: &Model,
        options: GpuOptions,
        report: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        check_model(model)?;
        if options.max_tokens == 0 {
            return Err(Error::option("max_tokens", 0, "a pass takes at least one token"));
        }
        let mut facts = Facts::new(&options.facts, false);
        loop {
            let mut device = Self::place(model, &options, facts, report)?;
            let tried = device.rehearse(None);
            device.facts.save(&mut device.pipelines);
            match tried {
                Ok(()) => {
                    device.info.detail.push_str(&device.facts.replaced());
                    return Ok(device);
                }
                Err(error) if !device.facts.another_try(&error) => return Err(error),
                Err(_) => facts = device.facts,
            }
        }
    }

    /// Opens a GPU and uploads the weights.
    fn place(
        model: &Model,
        options: &GpuOptions,
        mut facts: Facts,
        report: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Self> {
        let opened = select::open(&options.choice, &options.facts)?;
        let (context, caps) = (opened.context, options.mask.apply(opened.caps));
        let mut pipelines = Pipelines::new(options.rewrite);
        facts.attach(&context, &mut pipelines, &opened.info);
        let recipe = &model.recipe;
        let max_tokens = plan::most_tokens(recipe, &context.limits, options.max_tokens);

        let (mut matrices, mut placed) = (Vec::new(), 0);
        for matrix in &model.weights.matrices {
            matrices.push(GpuMatrix::upload(&context, &caps, matrix, facts.wide_scales())?);
            // The GPU has its own copy now.
            matrix.release_pages();
            placed += matrix.byte_len() as u64;
            report(placed)?;
        }
        // Once more: the system maps pages around those that are touched.
        for matrix in &model.weights.matrices {
            matrix.release_pages();
        }
        let mut linears = Vec::new();
        for linear in &recipe.linears {
            let bias = linear.bias.and_then(|id| model.weights.vectors.get(id.0));
            let bias = bias.map(Vec::as_slice);
            linears.push(matrices[linear.matrix.0].bind(&context, &mut pipelines, bias)?);
        }
        let mut tables = HashMap::new();
        let mut norms = HashMap::new();
        let mut vector_bytes = 0;
        for step in &recipe.steps {
            match step {
                Step::Embed { table } => {
                    let groups = matrices[table.0].bind(&context, &mut pipelines, None)?;
                    tables.insert(*table, groups);
                }
                Step::Project { norm: Some(id), .. } => {
                    let mut padded = model.weights.vectors[id.0].clone();
                    padded.resize(padded.len().next_multiple_of(BLOCK), 0.0);
                    let buffer = context.upload("a norm", bytemuck::cast_slice(&padded))?;
                    vector_bytes += buffer.size();
                    norms.insert(*id, pipelines.bind(&context, &[Binding::Read], &[&buffer])?);
                }
                _ => {}
            }
        }
        let placeholder = context.storage("the placeholder of a norm", 16)?;
        let no_norm = pipelines.bind(&context, &[Binding::Read], &[&placeholder])?;
        let int8 = options.activations == Activations::Int8;
        let layouts: Vec<_> = matrices.iter().map(|m| (m.kind, m.parts.len())).collect();
        let scratch = Scratch::new(&context, recipe, &layouts, max_tokens, caps.family, int8)?;
        let info = DeviceInfo {
            kind: "gpu",
            name: opened.name,
            detail: format!("{}; {caps:?}", opened.detail),
            activations: options.activations,
            max_tokens,
        };
        Ok(Self {
            width: caps.width(),
            model: model.clone(),
            caches: HashMap::new(),
            tails: HashMap::new(),
            next_id: 0,
            dispatches: 0,
            context,
            pipelines,
            facts,
            caps,
            info,
            matrices,
            linears,
            tables,
            norms,
            no_norm,
            vector_bytes,
            scratch,
        })
    }

    /// The GPUs of this machine, best first, with why one cannot be used.
    pub fn list() -> Vec<GpuAdapterInfo> {
        select::list()
    }

    /// The capabilities in use.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// Dispatches of the last forward pass.
    pub fn last_dispatches(&self) -> usize {
        self.dispatches
    }

    /// Gives the GPU back at once, as if the system had taken it: every later call says that the device is lost.
    pub fn destroy(&self) {
        self.context.device.destroy();
        // The callback that remembers the loss runs while the device is polled.
        let _ = self.context.device.poll(wgpu::PollType::Poll);
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn cache(&self, id: CacheId) -> Result<&GpuCache> {
        let unknown = || Error::option("cache", id.0, "this device has no such cache");
        self.caches.get(&id).ok_or_else(unknown)
    }

    fn position_bytes(&self) -> usize {
        position_bytes(&self.model.recipe.shape, self.info.activations)
    }

    fn tail_options(&self) -> TailOptions {
        TailOptions {
            activations: self.info.activations,
            half: self.caps.f16,
            max_tokens: self.info.max_tokens,
            max_binding: self.caps.max_binding.min(self.context.limits.max_buffer_size),
            avoided: self.facts.avoided().to_vec(),
        }
    }

    fn lines(&self) -> Lines {
        Lines::new(&self.model.recipe.shape, self.info.activations == Activations::Int8)
    }
}

impl Device for GpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn facts(&self) -> Option<DeviceFacts> {
        self.facts.self_test().then(|| self.facts.report(&self.info.name, &self.info.detail))
    }

    fn memory(&self) -> DeviceMemory {
        DeviceMemory {
            weights: self.matrices.iter().map(|m| m.bytes).sum::<u64>() + self.vector_bytes,
            caches: self.caches.values().map(|c| c.bytes).sum(),
            tails: self.tails.values().map(|t| t.bytes).sum(),
            scratch: self.scratch.byte_len(),
        }
    }

    fn create_cache(&mut self, positions: usize) -> Result<CacheId> {
        let half = self.info.activations == Activations::Int8;
        let shape = &self.model.recipe.shape;
        let cache = GpuCache::new(&self.context, &mut self.pipelines, &self.scratch, shape, positions, half)?;
        let id = CacheId(self.new_id());
        self.caches.insert(id, cache);
        Ok(id)
    }

    fn drop_cache(&mut self, cache: CacheId) {
        self.caches.remove(&cache);
    }

    fn load_tails(&mut self, tails: &[&Tail]) -> Result<TailId> {
        check_tails(&self.model.recipe, tails)?;
        let resident = loop {
            let options = self.tail_options();
            let (context, recipe) = (&self.context, &self.model.recipe);
            let resident =
                GpuTail::upload(context, &mut self.pipelines, recipe, &self.matrices, tails, &options)?;
            let resident = Arc::new(resident);
            let tried = self.rehearse(Some(&resident));
            self.facts.save(&mut self.pipelines);
            match tried {
                Ok(()) => break resident,
                Err(error) if !self.facts.avoid(resident.kind) => return Err(error),
                Err(_) => {}
            }
        };
        let id = TailId(self.new_id());
        self.tails.insert(id, resident);
        Ok(id)
    }

    fn drop_tail(&mut self, tail: TailId) {
        self.tails.remove(&tail);
    }

    fn tail_bytes(&self, tails: &[&Tail]) -> u64 {
        tail::tail_bytes(&self.model.recipe, &self.matrices, tails, &self.tail_options())
    }

    fn trim(&mut self) {
        // A device that is lost meanwhile says so at its next use.
        let _ = self.scratch.trim(&self.context, self.model.recipe.shape.vocab);
    }

    fn read_cache(&mut self, cache: CacheId, positions: usize) -> Result<Vec<u8>> {
        let (cache, line) = (self.cache(cache)?, self.position_bytes());
        check_positions(positions.saturating_mul(line), line, cache.capacity)?;
        cache.read(&self.context, &self.lines(), positions)
    }

    fn write_cache(&mut self, cache: CacheId, bytes: &[u8]) -> Result<()> {
        let cache = self.cache(cache)?;
        let positions = check_positions(bytes.len(), self.position_bytes(), cache.capacity)?;
        cache.write(&self.context, &self.lines(), positions, bytes)
    }

    fn forward_batch(&mut self, passes: &[Forward<'_>]) -> Result<Vec<Answer>> {
        self.context.check("a forward pass")?;
        check_passes(&self.model.recipe, &self.info, passes, |id| Ok(self.cache(id)?.capacity))?;
        if passes.is_empty() {
            return Ok(Vec::new());
        }
        // Those that decode first, so that they share walks over the weights.
        let mut order = by_tail(passes);
        order.sort_by_key(|i| Phase::of(passes[*i].tokens.len()) == Phase::Prefill);
        let passes: Vec<_> = order.iter().map(|i| &passes[*i]).collect();
        let unknown = |id: TailId| Error::option("tail", id.0, "this device has no such adapter");
        let tail = |pass: &&Forward<'_>| {
            let Some(id) = pass.tail else { return Ok(None) };
            let tail = self.tails.get(&id).ok_or_else(|| unknown(id))?;
            Ok(check_scales(pass.scales, tail.adapters)?.then(|| tail.clone()))
        };
        let tails = passes.iter().map(tail).collect::<Result<_>>()?;
        Ok(in_order(&order, self.run(&Batch { passes, tails })?))
    }
}

/// Refuses weights that are not the recipe's, and shapes that no kernel takes.
fn check_model(model: &Model) -> Result<()> {
    let (recipe, weights): (&Recipe, _) = (&model.recipe, &model.weights);
    for (i, spec) in recipe.matrices.iter().enumerate() {
        let fits = weights.matrices.get(i).is_some_and(|m| (m.rows, m.cols) == (spec.rows, spec.cols));
        if !fits || spec.rows == 0 || spec.cols == 0 {
            let reason = format!("does not have the shape {} x {}", spec.rows, spec.cols);
            return Err(Error::option("matrix", &spec.path, reason));
        }
    }
    for (i, spec) in recipe.vectors.iter().enumerate() {
        if weights.vectors.get(i).is_none_or(|v| v.len() != spec.len) {
            return Err(Error::option("vector", &spec.name, format!("does not have {} elements", spec.len)));
        }
    }
    let dim = recipe.shape.head_dim;
    if dim > MAX_DIM || !dim.is_multiple_of(2) {
        let reason =
            format!("heads of {dim} elements; even sizes up to {MAX_DIM} are supported, the CPU takes any");
        return Err(Error::NoDevice { wanted: "gpu".into(), reason });
    }
    Ok(())
}
