//! Steps become dispatches: one recording holds as many as their parameters have room in one buffer, for one submit. A
//! pass alone always fits.

use std::ops::Range;

use super::GpuDevice;
use super::pipeline::PARAMS_STRIDE;
use super::scratch::{Place, stride};
use super::tail::{LinearTail, StepTail};
use crate::arch::{LinearId, MatrixId, Output, Slot, VectorId};
use crate::device::{Activations, Forward, scale_of};
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, Combine, CombineParams, Spans};
use crate::kernels::expand::Expand;
use crate::kernels::prepare::{Order, Prepare};
use crate::kernels::project::{EXPANDED, Mode, Phase, Project, Shape, Tail, TailKind};
use crate::kernels::{
    BLOCK, CHUNK, Kernel, Variant, argmax, attention, embed, expand, prepare, project, rope, shrink,
};

/// One dispatch, ready to encode.
struct Dispatch {
    pipeline: wgpu::ComputePipeline,
    groups: [Option<wgpu::BindGroup>; 3],
    offset: u32,
    grid: [u32; 3],
}

/// The dispatches of one submit.
#[derive(Default)]
pub(super) struct Recording {
    params: Vec<u8>,
    dispatches: Vec<Dispatch>,
    /// Kernels are chosen and compiled, and nothing is kept or run.
    rehearsal: bool,
}

impl Recording {
    /// One that is never submitted.
    pub(super) fn rehearsal() -> Self {
        Self { rehearsal: true, ..Self::default() }
    }

    /// How many dispatches.
    pub(super) fn len(&self) -> usize {
        self.dispatches.len()
    }

    /// Every dispatch's parameters.
    pub(super) fn params(&self) -> &[u8] {
        &self.params
    }

    fn push<P: bytemuck::Pod>(
        &mut self,
        pipeline: wgpu::ComputePipeline,
        groups: [Option<wgpu::BindGroup>; 3],
        params: &P,
        grid: [u32; 3],
    ) {
        if self.rehearsal {
            return;
        }
        let offset = self.params.len();
        self.params.extend_from_slice(bytemuck::bytes_of(params));
        self.params.resize(offset + PARAMS_STRIDE as usize, 0);
        self.dispatches.push(Dispatch { pipeline, groups, offset: offset as u32, grid });
    }

    /// Writes the dispatches to a pass; every kernel's parameters are in group 2.
    pub(super) fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        for dispatch in &self.dispatches {
            pass.set_pipeline(&dispatch.pipeline);
            for (i, group) in dispatch.groups.iter().enumerate() {
                if let Some(group) = group {
                    let offsets: &[u32] = if i == 2 { &[dispatch.offset] } else { &[] };
                    pass.set_bind_group(i as u32, group, offsets);
                }
            }
            let [x, y, z] = dispatch.grid;
            pass.dispatch_workgroups(x, y, z);
        }
    }
}

/// A projection to record.
pub(super) struct Projection<'a> {
    pub(super) norm: Option<VectorId>,
    pub(super) input: Slot,
    pub(super) linears: &'a [LinearId],
    pub(super) output: &'a Output,
    /// The first input row.
    pub(super) first: usize,
    /// Input rows.
    pub(super) tokens: usize,
    /// The first output row.
    pub(super) to: usize,
    /// That of the passes whose rows they are.
    pub(super) phase: Phase,
}

/// Rows of a projection that share an adapter, and its branches for the step, if there are any.
pub(super) struct Branches<'a> {
    /// Counted from the projection's first.
    pub(super) rows: Range<usize>,
    pub(super) tail: Option<(&'a StepTail, TailKind)>,
    /// One for each adapter of the tail; none: all are 1.
    pub(super) scales: &'a [f32],
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
    /// What runs where this kernel is wanted.
    fn choose<K: Variant>(&mut self, wanted: K) -> Result<K> {
        self.facts.choose(&self.context, &mut self.pipelines, &self.caps, wanted)
    }

    /// A pipeline with a group over working memory at 2 and others as given.
    fn dispatch<P: bytemuck::Pod>(
        &mut self,
        recording: &mut Recording,
        kernel: Kernel,
        others: [Option<wgpu::BindGroup>; 2],
        places: &[Place],
        params: &P,
        grid: [u32; 3],
    ) -> Result<()> {
        let pipeline = self.pipelines.get(&self.context, kernel)?;
        let [_, _, Some(bindings)] = kernel.groups() else {
            let reason = "it binds no working memory".to_owned();
            return Err(Error::Gpu { what: kernel.name(), reason });
        };
        let group = self.scratch.group(&self.context, &mut self.pipelines, bindings, places)?;
        let [base, adapter] = others;
        self.push(recording, pipeline, [base, adapter, Some(group)], params, grid)
    }

    /// Adds a dispatch; what is recorded goes ahead where its parameters fill their buffer.
    fn push<P: bytemuck::Pod>(
        &mut self,
        recording: &mut Recording,
        pipeline: wgpu::ComputePipeline,
        groups: [Option<wgpu::BindGroup>; 3],
        params: &P,
        grid: [u32; 3],
    ) -> Result<()> {
        if recording.len() >= self.scratch.most_dispatches() {
            self.submit(recording, &[])?;
            *recording = Recording::default();
        }
        recording.push(pipeline, groups, params, grid);
        Ok(())
    }

    /// Residual = rows of the embedding.
    pub(super) fn record_embed(
        &mut self,
        recording: &mut Recording,
        table: MatrixId,
        tokens: usize,
    ) -> Result<()> {
        let kind = self.matrices[table.0].kind;
        let kernel = self.choose(embed::Embed { workgroup: self.width.workgroup, matrix: kind })?;
        let matrix = &self.matrices[table.0];
        let grid = kernel.grid(tokens, matrix.blocks);
        let parts: Vec<embed::Params> = matrix
            .parts
            .iter()
            .map(|part| embed::Params {
                first_row: part.rows.start as u32,
                rows: part.rows.len() as u32,
                blocks: matrix.blocks as u32,
                cols: matrix.cols as u32,
                groups: matrix.groups as u32,
                group_blocks: matrix.group_blocks as u32,
                tokens: tokens as u32,
                pad: 0,
            })
            .collect();
        let groups = self.tables.get(&table).cloned().unwrap_or_default();
        let places = [Place::Params, Place::Tokens, Place::Slot(Slot::Residual)];
        for (params, base) in parts.iter().zip(groups) {
            self.dispatch(recording, Kernel::Embed(kernel), [Some(base), None], &places, params, grid)?;
        }
        Ok(())
    }

    /// Linears that share an input, each row with its adapter's branches.
    ///
    /// Where one adapter serves all rows, its branches are part of the projection. Where several do, what each adds to its
    /// rows is computed first, so that the weights are still read once for all rows.
    pub(super) fn record_project(
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

    /// Rotary embedding, cache append, attention of one pass, whose rows begin at `row`.
    pub(super) fn record_attend(
        &mut self,
        recording: &mut Recording,
        (pass, row): (&Forward<'_>, usize),
        layer: usize,
    ) -> Result<()> {
        let shape = self.model.recipe.shape.clone();
        let (tokens, dim, chunks) = (pass.tokens.len(), shape.head_dim, shape.head_dim.div_ceil(4));
        let half = self.info.activations == Activations::Int8;
        let unknown = || Error::option("layer", layer, "the cache has no such layer");
        let cache = self.caches.get(&pass.cache).ok_or_else(unknown)?;
        let groups = cache.layers.get(layer).ok_or_else(unknown)?;
        let (rope_group, whole, spans_group) =
            (groups.rope.clone(), groups.whole.clone(), groups.spans.clone());
        let capacity = cache.capacity as u32;

        let kernel = self.choose(rope::Rope { workgroup: self.width.workgroup, half })?;
        let params = rope::Params {
            tokens: tokens as u32,
            position: pass.position as u32,
            capacity,
            kv_heads: shape.kv_heads as u32,
            dim: dim as u32,
            chunks: chunks as u32,
            stride: stride(&shape, Slot::Key) as u32,
            row: row as u32,
        };
        let pipeline = self.pipelines.get(&self.context, Kernel::Rope(kernel))?;
        let grid = kernel.grid(tokens, shape.kv_heads, chunks);
        self.push(recording, pipeline, [None, None, Some(rope_group)], &params, grid)?;

        let group = shape.heads / shape.kv_heads;
        let workgroups = Attention::workgroups(tokens, group, shape.kv_heads);
        let spans = Spans::choose(self.caps.family, workgroups, pass.position + tokens);
        let partly = spans.count > 1;
        let size = dim + 2;
        let (out_token, out_head, out_split) = if partly {
            (shape.heads * spans.count * size, spans.count * size, size)
        } else {
            (stride(&shape, Slot::Attended), dim, 0)
        };
        let params = attention::Params {
            tokens: tokens as u32,
            position: pass.position as u32,
            capacity,
            group: group as u32,
            dim: dim as u32,
            chunks: chunks as u32,
            stride: stride(&shape, Slot::Query) as u32,
            span: spans.span as u32,
            out_token: out_token as u32,
            out_head: out_head as u32,
            out_split: out_split as u32,
            partly: u32::from(partly),
            scale: (1.0 / (dim as f64).sqrt()) as f32,
            row: row as u32,
            // Spans are one pass's alone.
            out_first: if partly { 0 } else { (row * out_token) as u32 },
            pad: 0,
        };
        let kernel = self.choose(Attention { width: self.width, half })?;
        let pipeline = self.pipelines.get(&self.context, Kernel::Attention(kernel))?;
        let grid = Attention::grid(tokens, group, shape.kv_heads, spans.count);
        let out = if partly { spans_group } else { whole };
        self.push(recording, pipeline, [None, None, Some(out)], &params, grid)?;
        if !partly {
            return Ok(());
        }
        let kernel = self.choose(Combine { workgroup: self.width.workgroup })?;
        let params = CombineParams {
            tokens: tokens as u32,
            heads: shape.heads as u32,
            dim: dim as u32,
            splits: spans.count as u32,
            stride: stride(&shape, Slot::Attended) as u32,
            row: row as u32,
            pad: [0; 2],
        };
        let places = [Place::Params, Place::Spans, Place::Slot(Slot::Attended)];
        let grid = kernel.grid(tokens, shape.heads * dim);
        self.dispatch(recording, Kernel::Combine(kernel), [None, None], &places, &params, grid)
    }

    /// The likeliest token of a row of logits.
    pub(super) fn record_argmax(&mut self, recording: &mut Recording, row: usize) -> Result<()> {
        let kernel = self.choose(argmax::Argmax::of_device(&self.caps))?.into();
        let vocab = self.model.recipe.shape.vocab as u32;
        let params = argmax::Params { vocab, row: row as u32, pad: [0; 2] };
        let places = [Place::Params, Place::Slot(Slot::Logits), Place::Token];
        self.dispatch(recording, kernel, [None, None], &places, &params, [1, 1, 1])
    }
}
