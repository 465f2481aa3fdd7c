//! Resident adapters: down and up halves by step and linear, with the bind groups that attach them.
//!
//! Halves that are stored as the kernels read them are moved as they are. Hot swap is the choice of another [`GpuTail`]'s groups; nothing of the base model is touched.

use std::borrow::Cow;

use half::f16;

use super::context::{Context, buffer_bytes};
use super::matrix::GpuMatrix;
use super::pipeline::Pipelines;
use crate::adapter::{Branch, LowRank, Tail};
use crate::arch::{LinearId, Recipe, Step};
use crate::device::Activations;
use crate::error::Result;
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

/// All branches of adapters that are resident as one.
pub(super) struct GpuTail {
    /// How many.
    pub(super) adapters: usize,
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

/// The branches of one linear with the number of each one's adapter.
type Branches<'a> = [(usize, &'a Branch)];

impl GpuTail {
    /// Uploads branches, whose shapes and scalings have been checked.
    pub(super) fn upload(
        context: &Context,
        pipelines: &mut Pipelines,
        recipe: &Recipe,
        matrices: &[GpuMatrix],
        tails: &[&Tail],
        options: &TailOptions,
    ) -> Result<Self> {
        let kind = storage(tails, options)?;
        let steps: Vec<&[LinearId]> = recipe
            .steps
            .iter()
            .map(|step| match step {
                Step::Project { linears, .. } => linears.as_slice(),
                _ => &[],
            })
            .collect();
        let ranks = |linears: &[LinearId]| -> usize {
            linears.iter().map(|id| padded_rank(&branches(tails, *id))).sum()
        };
        let widest = steps.iter().map(|linears| ranks(linears)).max().unwrap_or(0);
        let inner = context.storage("an adapter's inner values", (options.max_tokens * widest * 4) as u64)?;
        let mut this = Self { adapters: tails.len(), kind, steps: Vec::new(), bytes: inner.size() };
        for linears in steps {
            let ranks = ranks(linears);
            if ranks == 0 {
                this.steps.push(None);
                continue;
            }
            let mut down = Vec::new();
            let mut factors: Vec<[f32; 2]> = Vec::with_capacity(ranks);
            let mut attached = Vec::new();
            for id in linears {
                let list = branches(tails, *id);
                let offset = factors.len() / CHUNK;
                append_down(kind, &list, recipe.linear_shape(*id).1, &mut down, &mut factors)?;
                let chunks = factors.len() / CHUNK - offset;
                let matrix = &matrices[recipe.linears[id.0].matrix.0];
                let linear = LinearTail { chunks, offset, parts: Vec::new() };
                attached.push(match chunks {
                    0 => None,
                    _ => Some(this.expand(context, pipelines, matrix, &list, linear, &inner)?),
                });
            }
            let down = context.upload("an adapter's down rows", &down)?;
            let factors = context.upload("an adapter's scalings", bytemuck::cast_slice(&factors))?;
            this.bytes += down.size() + factors.size();
            let shrink = pipelines.bind(context, shrink::ADAPTER, &[&down, &factors, &inner])?;
            this.steps.push(Some(StepTail { ranks, shrink, linears: attached }));
        }
        Ok(this)
    }

    /// The up halves of one linear, cut like its matrix.
    fn expand(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        matrix: &GpuMatrix,
        list: &Branches<'_>,
        mut linear: LinearTail,
        inner: &wgpu::Buffer,
    ) -> Result<LinearTail> {
        let size = element(self.kind);
        let width = linear.chunks * CHUNK * size;
        // Bytes of a row, and all rows.
        let ups: Vec<(usize, Cow<'_, [u8]>)> = list
            .iter()
            .map(|(_, b)| Ok((b.rank() * size, stored(self.kind, &b.up)?)))
            .collect::<Result<_>>()?;
        for part in &matrix.parts {
            let mut rows = vec![0; part.rows.len() * width];
            for (out, row) in rows.chunks_mut(width).zip(part.rows.clone()) {
                let mut at = 0;
                for (len, bytes) in &ups {
                    out[at..at + len].copy_from_slice(&bytes[row * len..(row + 1) * len]);
                    at += len;
                }
            }
            let up = context.upload("an adapter's up rows", &rows)?;
            self.bytes += up.size();
            linear.parts.push(pipelines.bind(context, project::ADAPTER, &[&up, inner])?);
        }
        Ok(linear)
    }
}

/// The branches of one linear, those of the first adapter first.
fn branches<'a>(tails: &[&'a Tail], id: LinearId) -> Vec<(usize, &'a Branch)> {
    let mut list = Vec::new();
    for (adapter, tail) in tails.iter().enumerate() {
        list.extend(tail.branches.get(id.0).into_iter().flatten().map(|branch| (adapter, branch)));
    }
    list
}

/// What [`GpuTail::upload`] allocates, at most: values that f16 happens to hold take half.
pub(super) fn tail_bytes(
    recipe: &Recipe,
    matrices: &[GpuMatrix],
    tails: &[&Tail],
    options: &TailOptions,
) -> u64 {
    let all = || tails.iter().flat_map(|tail| tail.branches.iter().flatten()).flat_map(|b| [&b.down, &b.up]);
    let half = options.activations == Activations::Int8 && all().all(LowRank::fits_f16) || all().all(is_f16);
    let element = if half { 2 } else { 4 };
    let (mut bytes, mut widest) = (0, 0);
    for step in &recipe.steps {
        let Step::Project { linears, .. } = step else { continue };
        let (mut ranks, mut width) = (0, 0);
        for id in linears {
            let rank = padded_rank(&branches(tails, *id));
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
fn padded_rank(list: &Branches<'_>) -> usize {
    list.iter().map(|(_, branch)| branch.rank()).sum::<usize>().next_multiple_of(CHUNK)
}

/// Adds a linear's down rows, K padded to blocks, and their factors, ranks padded to chunks.
fn append_down(
    kind: TailKind,
    list: &Branches<'_>,
    cols: usize,
    down: &mut Vec<u8>,
    factors: &mut Vec<[f32; 2]>,
) -> Result<()> {
    let size = element(kind);
    let (row, width) = (cols * size, cols.next_multiple_of(BLOCK) * size);
    for (adapter, branch) in list {
        for row in stored(kind, &branch.down)?.chunks(row) {
            let end = down.len() + width;
            down.extend_from_slice(row);
            down.resize(end, 0);
        }
        let factor = [branch.scaling, shrink::kind(*adapter, branch.kind.is_gelu())];
        factors.extend(std::iter::repeat_n(factor, branch.rank()));
    }
    factors.resize(factors.len().next_multiple_of(CHUNK), [0.0; 2]);
    down.resize(factors.len() * width, 0);
    Ok(())
}

/// f16 where it holds the branches: exactly, or, with int8 activations, as well as their files did.
fn storage(tails: &[&Tail], options: &TailOptions) -> Result<TailKind> {
    let branches = tails.iter().flat_map(|tail| tail.branches.iter().flatten());
    for half in branches.flat_map(|b| [&b.down, &b.up]) {
        let rounded = options.activations == Activations::Int8 && half.fits_f16();
        if !is_f16(half) && !(if rounded { in_range(half)? } else { exact(half)? }) {
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

/// Bytes of a value.
fn element(kind: TailKind) -> usize {
    match kind {
        TailKind::F32 => 4,
        TailKind::F16 | TailKind::Half => 2,
    }
}

/// A matrix as it lies on the GPU, row after row; refuses values that are not finite.
fn stored(kind: TailKind, matrix: &LowRank) -> Result<Cow<'_, [u8]>> {
    let wanted = if kind == TailKind::F32 { DType::F32 } else { DType::F16 };
    if let LowRank::Float(tensor) = matrix
        && tensor.dtype == wanted
    {
        tensor.check_finite()?;
        return Ok(tensor.bytes().into());
    }
    let values = matrix.to_f32()?;
    Ok(Cow::Owned(match kind {
        TailKind::F32 => bytemuck::cast_slice(&values).to_vec(),
        TailKind::F16 | TailKind::Half => {
            let halves: Vec<u16> = values.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
            bytemuck::cast_slice(&halves).to_vec()
        }
    }))
}
