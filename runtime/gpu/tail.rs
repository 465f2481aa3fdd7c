//! A resident adapter: down and up halves by step and linear, with the bind groups that attach them.
//!
//! Hot swap is the choice of another [`GpuTail`]'s groups; nothing of the base model is touched.

use half::f16;

use super::context::{Context, buffer_bytes};
use super::matrix::GpuMatrix;
use super::pipeline::Pipelines;
use crate::adapter::{Branch, LowRank, Tail};
use crate::arch::{LinearId, Recipe, Step};
use crate::device::Activations;
use crate::error::{Error, Result};
use crate::kernels::project::{self, TailKind};
use crate::kernels::{BLOCK, CHUNK, shrink};
use crate::weights::DType;

/// The branches of one step's linears.
pub(super) struct StepTail {
    /// Padded ranks of all linears.
    pub(super) ranks: usize,
    pub(super) shrink: wgpu::BindGroup,
    /// One for each linear of the step.
    pub(super) linears: Vec<Option<LinearTail>>,
}

/// The branches of one linear.
pub(super) struct LinearTail {
    /// r / 8.
    pub(super) chunks: usize,
    /// First chunk among the step's.
    pub(super) offset: usize,
    /// Group 1 for each part of the matrix.
    pub(super) parts: Vec<wgpu::BindGroup>,
}

/// All branches of one adapter (or stack).
pub(super) struct GpuTail {
    pub(super) kind: TailKind,
    /// One for each step of the recipe.
    pub(super) steps: Vec<Option<StepTail>>,
    pub(super) bytes: u64,
}

/// What residency depends on.
pub(super) struct TailOptions {
    pub(super) activations: Activations,
    /// 16-bit storage in shaders.
    pub(super) half: bool,
    /// Rows of inner values.
    pub(super) max_tokens: usize,
    /// Forms that kernels of this device fail with.
    pub(super) avoided: Vec<TailKind>,
}

impl GpuTail {
    /// Uploads branches, whose shapes have been checked.
    pub(super) fn upload(
        context: &Context,
        pipelines: &mut Pipelines,
        recipe: &Recipe,
        matrices: &[GpuMatrix],
        tail: &Tail,
        options: &TailOptions,
    ) -> Result<Self> {
        let kind = storage(tail, options)?;
        let none = Vec::new();
        let branches = |id: &LinearId| tail.branches.get(id.0).unwrap_or(&none);
        let steps: Vec<&[LinearId]> = recipe
            .steps
            .iter()
            .map(|step| match step {
                Step::Project { linears, .. } => linears.as_slice(),
                _ => &[],
            })
            .collect();
        let ranks =
            |linears: &[LinearId]| -> usize { linears.iter().map(|id| padded_rank(branches(id))).sum() };
        let widest = steps.iter().map(|linears| ranks(linears)).max().unwrap_or(0);
        let inner = context.storage("an adapter's inner values", (options.max_tokens * widest * 4) as u64)?;
        let mut this = Self { kind, steps: Vec::new(), bytes: inner.size() };
        for linears in steps {
            let ranks = ranks(linears);
            if ranks == 0 {
                this.steps.push(None);
                continue;
            }
            let mut down = Vec::new();
            let mut factors: Vec<[f32; 2]> = Vec::with_capacity(ranks);
            let mut tails = Vec::new();
            for id in linears {
                let list = branches(id);
                let offset = factors.len() / CHUNK;
                append_down(list, recipe.linear_shape(*id).1, &mut down, &mut factors)?;
                let chunks = factors.len() / CHUNK - offset;
                let matrix = &matrices[recipe.linears[id.0].matrix.0];
                let linear = LinearTail { chunks, offset, parts: Vec::new() };
                tails.push(match chunks {
                    0 => None,
                    _ => Some(this.expand(context, pipelines, matrix, list, linear, &inner)?),
                });
            }
            let down = context.upload("an adapter's down rows", &stored(kind, &down))?;
            let factors = context.upload("an adapter's scalings", bytemuck::cast_slice(&factors))?;
            this.bytes += down.size() + factors.size();
            let shrink = pipelines.bind(context, shrink::ADAPTER, &[&down, &factors, &inner])?;
            this.steps.push(Some(StepTail { ranks, shrink, linears: tails }));
        }
        Ok(this)
    }

    /// The up halves of one linear, cut like its matrix.
    fn expand(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        matrix: &GpuMatrix,
        list: &[Branch],
        mut linear: LinearTail,
        inner: &wgpu::Buffer,
    ) -> Result<LinearTail> {
        let width = linear.chunks * CHUNK;
        let ups: Vec<(usize, Vec<f32>)> =
            list.iter().map(|b| Ok((b.rank(), b.up.to_f32()?))).collect::<Result<_>>()?;
        for part in &matrix.parts {
            let mut rows = vec![0.0; part.rows.len() * width];
            for (out, row) in rows.chunks_mut(width).zip(part.rows.clone()) {
                let mut at = 0;
                for (rank, values) in &ups {
                    out[at..at + rank].copy_from_slice(&values[row * rank..(row + 1) * rank]);
                    at += rank;
                }
            }
            let up = context.upload("an adapter's up rows", &stored(self.kind, &rows))?;
            self.bytes += up.size();
            linear.parts.push(pipelines.bind(context, project::ADAPTER, &[&up, inner])?);
        }
        Ok(linear)
    }
}

/// What [`GpuTail::upload`] allocates, at most: values that f16 happens to hold take half.
pub(super) fn tail_bytes(recipe: &Recipe, matrices: &[GpuMatrix], tail: &Tail, options: &TailOptions) -> u64 {
    let none = Vec::new();
    let branches = |id: &LinearId| tail.branches.get(id.0).unwrap_or(&none);
    let half = options.activations == Activations::Int8
        && tail.branches.iter().flatten().all(|b| b.down.fits_f16() && b.up.fits_f16())
        || tail.branches.iter().flatten().flat_map(|b| [&b.down, &b.up]).all(is_f16);
    let element = if half { 2 } else { 4 };
    let (mut bytes, mut widest) = (0, 0);
    for step in &recipe.steps {
        let Step::Project { linears, .. } = step else { continue };
        let (mut ranks, mut width) = (0, 0);
        for id in linears {
            let rank = padded_rank(branches(id));
            ranks += rank;
            width = recipe.linear_shape(*id).1.next_multiple_of(BLOCK);
            if rank > 0 {
                let parts = &matrices[recipe.linears[id.0].matrix.0].parts;
                let ups = parts.iter().map(|part| buffer_bytes((part.rows.len() * rank * element) as u64));
                bytes += ups.sum::<u64>();
            }
        }
        if ranks > 0 {
            bytes += buffer_bytes((ranks * width * element) as u64) + buffer_bytes(ranks as u64 * 8);
        }
        widest = widest.max(ranks);
    }
    bytes + buffer_bytes((options.max_tokens * widest * 4) as u64)
}

/// Whether it is stored as what it is kept as.
fn is_f16(half: &LowRank) -> bool {
    matches!(half, LowRank::Float(tensor) if tensor.dtype == DType::F16)
}

/// Ranks of one linear, padded to whole chunks.
fn padded_rank(list: &[Branch]) -> usize {
    list.iter().map(Branch::rank).sum::<usize>().next_multiple_of(CHUNK)
}

/// Adds a linear's down rows, K padded to blocks, and their factors, ranks padded to chunks.
fn append_down(list: &[Branch], cols: usize, down: &mut Vec<f32>, factors: &mut Vec<[f32; 2]>) -> Result<()> {
    let width = cols.next_multiple_of(BLOCK);
    for branch in list {
        if !branch.scaling.is_finite() {
            return Err(Error::option("scaling", branch.scaling, "must be a finite number"));
        }
        for row in branch.down.to_f32()?.chunks(cols) {
            down.extend_from_slice(row);
            down.resize(down.len() + width - cols, 0.0);
        }
        let gelu = f32::from(u8::from(branch.kind.is_gelu()));
        factors.extend(std::iter::repeat_n([branch.scaling, gelu], branch.rank()));
    }
    factors.resize(factors.len().next_multiple_of(CHUNK), [0.0; 2]);
    down.resize(factors.len() * width, 0.0);
    Ok(())
}

/// f16 where it holds the branches: exactly, or, with int8 activations, as well as their files did.
fn storage(tail: &Tail, options: &TailOptions) -> Result<TailKind> {
    for half in tail.branches.iter().flatten().flat_map(|b| [&b.down, &b.up]) {
        if !(options.activations == Activations::Int8 && half.fits_f16() && in_range(half)? || exact(half)?) {
            return Ok(TailKind::F32);
        }
    }
    let kinds = [(options.half, TailKind::Half), (true, TailKind::F16)];
    let usable = kinds.into_iter().find(|(exists, kind)| *exists && !options.avoided.contains(kind));
    Ok(usable.map_or(TailKind::F32, |(_, kind)| kind))
}

fn exact(half: &LowRank) -> Result<bool> {
    Ok(half.to_f32()?.iter().all(|v| f16::from_f32(*v).to_f32() == *v))
}

fn in_range(half: &LowRank) -> Result<bool> {
    Ok(half.to_f32()?.iter().all(|v| f16::from_f32(*v).is_finite()))
}

fn stored(kind: TailKind, values: &[f32]) -> Vec<u8> {
    match kind {
        TailKind::F32 => bytemuck::cast_slice(values).to_vec(),
        TailKind::F16 | TailKind::Half => {
            let halves: Vec<u16> = values.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
            bytemuck::cast_slice(&halves).to_vec()
        }
    }
}
