//! Linears that share an input, with what adapters add to each row.

use std::ops::Range;

use super::Recording;
use crate::arch::{LinearId, Output, Slot, VectorId};
use crate::device::{Activations, scale_of};
use crate::error::Result;
use crate::gpu::GpuDevice;
use crate::gpu::scratch::{Place, stride};
use crate::gpu::tail::{LinearTail, StepTail};
use crate::kernels::expand::Expand;
use crate::kernels::prepare::{Order, Prepare};
use crate::kernels::project::{EXPANDED, Mode, Phase, Project, Shape, Tail, TailKind};
use crate::kernels::{BLOCK, CHUNK, Kernel, expand, prepare, project, shrink};

/// A projection to record.
pub(in crate::gpu) struct Projection<'a> {
    pub(in crate::gpu) norm: Option<VectorId>,
    pub(in crate::gpu) input: Slot,
    pub(in crate::gpu) linears: &'a [LinearId],
    pub(in crate::gpu) output: &'a Output,
    /// The first input row.
    pub(in crate::gpu) first: usize,
    /// Input rows.
    pub(in crate::gpu) tokens: usize,
    /// The first output row.
    pub(in crate::gpu) to: usize,
    /// That of the passes whose rows they are.
    pub(in crate::gpu) phase: Phase,
}

/// Rows of a projection that share an adapter, and its branches for the step, if there are any.
pub(in crate::gpu) struct Branches<'a> {
    /// Counted from the projection's first.
    pub(in crate::gpu) rows: Range<usize>,
    pub(in crate::gpu) tail: Option<(&'a StepTail, TailKind)>,
    /// One for each adapter of the tail; none: all are 1.
    pub(in crate::gpu) scales: &'a [f32],
}

impl Branches<'_> {
    /// Those of the step's linear `i`, with the step's ranks.
    fn linear(&self, i: usize) -> Option<(&LinearTail, usize, TailKind)> {
        let (step, kind) = self.tail?;
        Some((step.linears.get(i)?.as_ref()?, step.ranks, kind))
    }
}

/// What the adapters of a batch add to a linear.
struct Expanded {
    /// Group 1 of the projection that reads it.
    group: wgpu::BindGroup,
    /// Rows of the matrix.
    width: usize,
    /// Of each row.
    chunks: usize,
}

/// Where prepared inputs lie.
struct Inputs {
    /// Float32 and its first row.
    float: (Place, usize),
    /// Whether compressed linears read int8.
    int8: bool,
}

impl GpuDevice {
    /// Linears that share an input, each row with its adapter's branches.
    ///
    /// Where one adapter serves all rows, its branches are part of the projection. Where several do, what each adds to its
    /// rows is computed first, so that the weights are still read once for all rows.
    pub(in crate::gpu) fn record_project(
        &mut self,
        recording: &mut Recording,
        p: &Projection<'_>,
        groups: &[Branches<'_>],
    ) -> Result<()> {
        let attached = groups.iter().any(|group| group.tail.is_some());
        let inputs = self.record_prepare(recording, p, attached)?;
        let (x, x_row) = inputs.float;
        for group in groups {
            let Some((tail, kind)) = group.tail else { continue };
            let kernel = self.choose(shrink::Shrink { width: self.width, tail: kind })?;
            let blocks = self.matrices[self.matrix_of(p.linears[0])].blocks;
            let params = shrink::Params {
                rows: tail.ranks as u32,
                blocks: blocks as u32,
                x_row: (x_row + group.rows.start) as u32,
                inner_row: group.rows.start as u32,
                down_first: tail.down_first as u32,
                factor_first: tail.factor_first as u32,
                pad: [0; 2],
                scales: std::array::from_fn(|adapter| scale_of(group.scales, adapter)),
            };
            let grid = shrink::Shrink::grid(tail.ranks, group.rows.len());
            let adapter = [None, Some(tail.group.clone())];
            self.dispatch(recording, Kernel::Shrink(kernel), adapter, &[Place::Params, x], &params, grid)?;
        }
        for (i, id) in p.linears.iter().enumerate() {
            let (slot, mode) = match p.output {
                Output::Store(slots) => (slots[i], Mode::Store),
                Output::AddToResidual => (Slot::Residual, Mode::Add),
                Output::Gated(_) => (Slot::Gated, if i == 0 { Mode::Store } else { Mode::Gate }),
            };
            let fused = match groups {
                [group] => group.linear(i),
                _ => None,
            };
            let expanded = match fused {
                None => self.record_expand(recording, (i, *id), p.tokens, groups)?,
                Some(_) => None,
            };
            let tail =
                fused.map(|(_, _, kind)| Tail::Fused(kind)).or(expanded.as_ref().map(|_| Tail::Expanded));
            let kind = self.matrices[self.matrix_of(*id)].kind;
            let int8 = inputs.int8 && kind.is_packed();
            let wanted = Project {
                shape: Shape::choose(self.caps.family, p.phase, p.tokens),
                width: self.width,
                matrix: kind,
                int8,
                tail,
            };
            let kernel = self.choose(wanted.tidy())?;
            let matrix = &self.matrices[self.matrix_of(*id)];
            let place = if int8 { Place::Rounded(Order::of(matrix.kind.weights)) } else { x };
            let places = [Place::Params, place, Place::Slot(slot)];
            let mut params = project::Params {
                blocks: matrix.blocks as u32,
                groups: matrix.groups as u32,
                group_blocks: matrix.group_blocks as u32,
                x_row: if int8 { 0 } else { x_row as u32 },
                tokens: p.tokens as u32,
                y_row: p.to as u32,
                y_stride: stride(&self.model.recipe.shape, slot) as u32,
                mode: mode as u32,
                has_bias: u32::from(self.model.recipe.linears[id.0].bias.is_some()),
                ..Default::default()
            };
            match (fused, &expanded) {
                (Some((linear, ranks, _)), _) => {
                    params.tail_chunks = linear.chunks as u32;
                    params.inner_stride = (ranks / CHUNK) as u32;
                    params.inner_offset = linear.offset as u32;
                }
                (None, Some(e)) => {
                    (params.tail_chunks, params.inner_stride) = (e.chunks as u32, e.width as u32);
                }
                (None, None) => {}
            }
            let rows: Vec<_> = matrix.parts.iter().map(|part| part.rows.clone()).collect();
            for (part, rows) in rows.into_iter().enumerate() {
                params.rows = rows.len() as u32;
                params.y_column = rows.start as u32;
                let base = self.linears[id.0].get(part).cloned();
                let adapter = match (fused, &expanded) {
                    (Some((linear, ..)), _) => linear.parts.get(part).map(|up| {
                        params.up_first = up.first as u32;
                        up.group.clone()
                    }),
                    (None, Some(e)) => {
                        params.inner_offset = rows.start as u32;
                        Some(e.group.clone())
                    }
                    (None, None) => None,
                };
                let grid = kernel.grid(rows.len(), p.tokens);
                let others = [base, adapter];
                self.dispatch(recording, Kernel::Project(kernel), others, &places, &params, grid)?;
            }
        }
        Ok(())
    }

    /// What adapters add to a linear, each to its rows; `None` where no adapter has a branch there.
    fn record_expand(
        &mut self,
        recording: &mut Recording,
        (i, id): (usize, LinearId),
        tokens: usize,
        groups: &[Branches<'_>],
    ) -> Result<Option<Expanded>> {
        let attached = || groups.iter().filter_map(|group| group.linear(i));
        // Rows without a branch get zeros, by any adapter's kernel.
        let Some((any, _, any_kind)) = attached().next() else {
            return Ok(None);
        };
        let chunks = attached().map(|(linear, ..)| linear.chunks).max().unwrap_or(0);
        let parts = &self.matrices[self.matrix_of(id)].parts;
        let rows: Vec<Range<usize>> = parts.iter().map(|part| part.rows.clone()).collect();
        let width = rows.last().map_or(0, |rows| rows.end);
        self.scratch.grow(&self.context, Place::Expanded, tokens * width * chunks)?;
        for group in groups {
            let own = group.linear(i);
            let tail = own.map_or(any_kind, |(_, _, kind)| kind);
            let kernel = self.choose(Expand { workgroup: self.width.workgroup, tail })?;
            let mut params = expand::Params {
                tokens: group.rows.len() as u32,
                y_row: group.rows.start as u32,
                y_stride: width as u32,
                y_chunks: chunks as u32,
                ..Default::default()
            };
            if let Some((linear, ranks, _)) = own {
                params.tail_chunks = linear.chunks as u32;
                params.inner_stride = (ranks / CHUNK) as u32;
                params.inner_offset = linear.offset as u32 + group.rows.start as u32 * params.inner_stride;
            }
            let adapters = &own.map_or(any, |(linear, ..)| linear).parts;
            for (rows, adapter) in rows.iter().zip(adapters) {
                params.up_first = adapter.first as u32;
                params.rows = rows.len() as u32;
                params.y_column = rows.start as u32;
                let grid = kernel.grid(rows.len(), group.rows.len(), chunks);
                let (others, places) =
                    ([None, Some(adapter.group.clone())], [Place::Params, Place::Expanded]);
                self.dispatch(recording, Kernel::Expand(kernel), others, &places, &params, grid)?;
            }
        }
        let group = self.scratch.group(&self.context, &mut self.pipelines, EXPANDED, &[Place::Expanded])?;
        Ok(Some(Expanded { group, width, chunks }))
    }

    fn matrix_of(&self, id: LinearId) -> usize {
        self.model.recipe.linears[id.0].matrix.0
    }

    /// The norm and the rounding that a projection needs; none where its linears can read the slot itself.
    fn record_prepare(
        &mut self,
        recording: &mut Recording,
        p: &Projection<'_>,
        tail: bool,
    ) -> Result<Inputs> {
        let int8 = self.info.activations == Activations::Int8;
        let kinds: Vec<_> = p.linears.iter().map(|id| self.matrices[self.matrix_of(*id)].kind).collect();
        let mut orders: Vec<Order> = Vec::new();
        for kind in kinds.iter().filter(|k| int8 && k.is_packed()) {
            let order = Order::of(kind.weights);
            if !orders.contains(&order) {
                orders.push(order);
            }
        }
        let float = tail || !int8 || kinds.iter().any(|k| !k.is_packed());
        let own = match p.output {
            Output::Store(slots) => slots.contains(&p.input),
            Output::AddToResidual => p.input == Slot::Residual,
            Output::Gated(_) => p.input == Slot::Gated,
        };
        // A projection onto its own input would read what it has already overwritten.
        let copy = float && (p.norm.is_some() || own);
        let shape = &self.model.recipe.shape;
        let cols = shape.width(p.input);
        let mut params = prepare::Params {
            blocks: (stride(shape, p.input) / BLOCK) as u32,
            cols: cols as u32,
            first_row: p.first as u32,
            normalise: u32::from(p.norm.is_some()),
            keep: u32::from(copy),
            order: 0,
            epsilon: self.model.recipe.norm_eps,
            pad: 0,
        };
        let base = p.norm.and_then(|id| self.norms.get(&id)).unwrap_or(&self.no_norm).clone();
        let grid = [p.tokens as u32, 1, 1];
        let slot = Place::Slot(p.input);
        for order in &orders {
            params.order = *order as u32;
            let kernel = self.choose(Prepare { width: self.width, int8: true })?.into();
            let places = [Place::Params, slot, Place::Prepared, Place::Rounded(*order)];
            self.dispatch(recording, kernel, [Some(base.clone()), None], &places, &params, grid)?;
            params.keep = 0;
        }
        if copy && orders.is_empty() {
            let kernel = self.choose(Prepare { width: self.width, int8: false })?.into();
            let places = [Place::Params, slot, Place::Prepared];
            self.dispatch(recording, kernel, [Some(base), None], &places, &params, grid)?;
        }
        let float = if copy { (Place::Prepared, 0) } else { (slot, p.first) };
        Ok(Inputs { float, int8 })
    }
}
