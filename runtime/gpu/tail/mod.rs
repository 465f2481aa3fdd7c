//! Resident adapters: down and up halves of all linears in a few buffers, with the bind groups that attach them.
//!
//! Halves that are stored as the kernels read them are moved as they are. Hot swap is the choice of another [`GpuTail`]'s groups; nothing of the base model is touched.

mod layout;

use std::borrow::Cow;

use half::f16;

use self::layout::{Layout, Slabs, Spot};
use super::context::{Context, PIECE};
use super::matrix::GpuMatrix;
use super::pipeline::Pipelines;
use crate::adapter::{Branch, LowRank, Tail};
use crate::arch::{LinearId, Recipe};
use crate::device::Activations;
use crate::error::Result;
use crate::kernels::project::{self, TailKind};
use crate::kernels::{BLOCK, CHUNK, shrink};
use crate::weights::DType;

/// The branches of one step's linears.
pub(super) struct StepTail {
    /// Padded ranks of all linears.
    pub(super) ranks: usize,
    /// Group 1 of shrink.
    pub(super) group: wgpu::BindGroup,
    /// The step's first block of down in it.
    pub(super) down_first: usize,
    /// Its first rank's factor.
    pub(super) factor_first: usize,
    /// One for each linear of the step.
    pub(super) linears: Vec<Option<LinearTail>>,
}

/// The branches of one linear.
pub(super) struct LinearTail {
    /// r / 8.
    pub(super) chunks: usize,
    /// First chunk among the step's.
    pub(super) offset: usize,
    /// For each part of the matrix.
    pub(super) parts: Vec<Up>,
}

/// The up half of one linear for a part of its matrix.
pub(super) struct Up {
    /// Group 1 of the projection.
    pub(super) group: wgpu::BindGroup,
    /// Its first chunk in it.
    pub(super) first: usize,
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
    /// The most bytes of a binding.
    pub(super) max_binding: u64,
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
        let size = element(kind);
        let layout = Layout::new(recipe, matrices, tails, size, options.max_binding);
        let mut downs = Writer::new(context, "an adapter's down rows", &layout.down)?;
        let mut ups = Writer::new(context, "an adapter's up rows", &layout.up)?;
        let mut factors: Vec<[f32; 2]> = Vec::with_capacity(layout.ranks);
        for linear in layout.steps.iter().flatten().flat_map(|step| step.linears.iter().flatten()) {
            let list = branches(tails, linear.id);
            let cols = recipe.linear_shape(linear.id).1;
            write_down(kind, &list, cols, &mut downs, &mut factors)?;
            let matrix = &matrices[recipe.linears[linear.id.0].matrix.0];
            write_up(kind, &list, linear.chunks * CHUNK, matrix, &mut ups)?;
        }
        let (downs, ups) = (downs.finish()?, ups.finish()?);
        let factors = context.upload("an adapter's scalings", bytemuck::cast_slice(&factors))?;
        let inner = (options.max_tokens * layout.widest * 4) as u64;
        let inner = context.storage("an adapter's inner values", inner)?;
        let mut groups = |buffers: &[wgpu::Buffer], bindings, others: &[&wgpu::Buffer]| -> Result<Vec<_>> {
            let bound = |buffer| pipelines.bind(context, bindings, &[&[buffer], others].concat());
            buffers.iter().map(bound).collect()
        };
        let up_groups = groups(&ups, project::ADAPTER, &[&inner])?;
        let down_groups = groups(&downs, shrink::ADAPTER, &[&factors, &inner])?;
        let up = |spot: &Spot| Up {
            group: up_groups[spot.slab].clone(),
            first: spot.start as usize / (CHUNK * size),
        };
        let steps = layout.steps.iter().map(|step| {
            let step = step.as_ref()?;
            let linears = step.linears.iter().map(|linear| {
                let linear = linear.as_ref()?;
                let parts = linear.parts.iter().map(up).collect();
                Some(LinearTail { chunks: linear.chunks, offset: linear.offset, parts })
            });
            Some(StepTail {
                ranks: step.ranks,
                group: down_groups[step.down.slab].clone(),
                down_first: step.down.start as usize / (BLOCK * size),
                factor_first: step.factor_first,
                linears: linears.collect(),
            })
        });
        let (steps, bytes) = (steps.collect(), layout.bytes(options.max_tokens));
        Ok(Self { adapters: tails.len(), kind, steps, bytes })
    }
}

/// Fills buffers one after the other, a piece at a time: what an adapter's rows are gathered in stays small.
struct Writer<'a> {
    context: &'a Context,
    what: &'static str,
    buffers: Vec<wgpu::Buffer>,
    sizes: Vec<u64>,
    /// Which is filled, and how far it is.
    at: (usize, u64),
    pending: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(context: &'a Context, what: &'static str, slabs: &Slabs) -> Result<Self> {
        let sizes = slabs.sizes.clone();
        let buffers = sizes.iter().map(|bytes| context.storage(what, *bytes)).collect::<Result<_>>()?;
        let first = sizes.first().map_or(0, |bytes| (*bytes).min(PIECE as u64));
        Ok(Self { context, what, buffers, sizes, at: (0, 0), pending: Vec::with_capacity(first as usize) })
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        // All fits: shapes were checked, and buffers were made for them.
        while let (false, Some(size)) = (bytes.is_empty(), self.sizes.get(self.at.0)) {
            let rest = (size - self.at.1) as usize;
            let most = rest.min(PIECE) - self.pending.len();
            let (now, later) = bytes.split_at(bytes.len().min(most));
            self.pending.extend_from_slice(now);
            bytes = later;
            if now.len() == most {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, mut count: usize) -> Result<()> {
        while count > 0 {
            let now = count.min(64);
            self.write(&[0; 64][..now])?;
            count -= now;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let (slab, at) = &mut self.at;
        if let (Some(buffer), Some(size)) = (self.buffers.get(*slab), self.sizes.get(*slab)) {
            self.context.write(self.what, buffer, *at, &self.pending)?;
            *at += self.pending.len() as u64;
            if *at >= *size {
                (*slab, *at) = (*slab + 1, 0);
            }
        }
        self.pending.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<wgpu::Buffer>> {
        self.flush()?;
        Ok(self.buffers)
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
    Layout::new(recipe, matrices, tails, element, options.max_binding).bytes(options.max_tokens)
}

/// Whether it is stored as what it is kept as.
fn is_f16(half: &LowRank) -> bool {
    matches!(half, LowRank::Float(tensor) if tensor.dtype == DType::F16)
}

/// Writes a linear's down rows, K padded to blocks, and adds their factors, ranks padded to chunks.
fn write_down(
    kind: TailKind,
    list: &Branches<'_>,
    cols: usize,
    down: &mut Writer<'_>,
    factors: &mut Vec<[f32; 2]>,
) -> Result<()> {
    let size = element(kind);
    let (row, width) = (cols * size, cols.next_multiple_of(BLOCK) * size);
    let first = factors.len();
    for (adapter, branch) in list {
        let rows = stored(kind, &branch.down)?;
        match row == width {
            true => down.write(&rows)?,
            false => rows.chunks(row).try_for_each(|row| {
                down.write(row)?;
                down.zeros(width - row.len())
            })?,
        }
        let factor = [branch.scaling, shrink::kind(*adapter, branch.kind.is_gelu())];
        factors.extend(std::iter::repeat_n(factor, branch.rank()));
    }
    let ranks = factors.len();
    factors.resize(first + (ranks - first).next_multiple_of(CHUNK), [0.0; 2]);
    down.zeros((factors.len() - ranks) * width)
}

/// Writes a linear's up rows, cut like its matrix, ranks padded.
fn write_up(
    kind: TailKind,
    list: &Branches<'_>,
    ranks: usize,
    matrix: &GpuMatrix,
    up: &mut Writer<'_>,
) -> Result<()> {
    let size = element(kind);
    // Bytes of a row, and all rows.
    let halves: Vec<(usize, Cow<'_, [u8]>)> =
        list.iter().map(|(_, b)| Ok((b.rank() * size, stored(kind, &b.up)?))).collect::<Result<_>>()?;
    let padding = ranks * size - halves.iter().map(|(len, _)| len).sum::<usize>();
    for row in matrix.parts.iter().flat_map(|part| part.rows.clone()) {
        for (len, bytes) in &halves {
            up.write(&bytes[row * len..(row + 1) * len])?;
        }
        up.zeros(padding)?;
    }
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
