//! Steps become dispatches: one recording holds a whole pass, its parameters in one buffer, for one submit.

use super::GpuDevice;
use super::pipeline::PARAMS_STRIDE;
use super::scratch::{Place, stride};
use super::tail::StepTail;
use crate::arch::{LinearId, MatrixId, Output, Slot, VectorId};
use crate::device::{Activations, Forward, scale_of};
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, Combine, CombineParams, Spans};
use crate::kernels::prepare::{Order, Prepare};
use crate::kernels::project::{Mode, Project, Shape};
use crate::kernels::{
    BLOCK, CHUNK, Family, Kernel, argmax, attention, embed, prepare, project, rope, shrink,
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
}

impl Recording {
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
    /// Index of the step, by which a tail finds its branches.
    pub(super) step: usize,
    pub(super) norm: Option<VectorId>,
    pub(super) input: Slot,
    pub(super) linears: &'a [LinearId],
    pub(super) output: &'a Output,
    /// The first input row.
    pub(super) first: usize,
    /// Input rows.
    pub(super) tokens: usize,
}

/// Where prepared inputs lie.
struct Inputs {
    /// Float32 and its first row.
    float: (Place, usize),
    /// Whether compressed linears read int8.
    int8: bool,
}

impl GpuDevice {
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
        recording.push(pipeline, [base, adapter, Some(group)], params, grid);
        Ok(())
    }

    /// Residual = rows of the embedding.
    pub(super) fn record_embed(
        &mut self,
        recording: &mut Recording,
        table: MatrixId,
        tokens: usize,
    ) -> Result<()> {
        let matrix = &self.matrices[table.0];
        let kernel = embed::Embed { workgroup: self.width.workgroup, matrix: matrix.kind };
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

    /// Linears that share an input, with their branches where a tail is attached.
    pub(super) fn record_project(
        &mut self,
        recording: &mut Recording,
        p: &Projection<'_>,
        tail: Option<(&StepTail, &[f32])>,
        tail_kind: Option<project::TailKind>,
    ) -> Result<()> {
        let inputs = self.record_prepare(recording, p, tail.is_some())?;
        let (x, x_row) = inputs.float;
        if let (Some((tail, scales)), Some(kind)) = (tail, tail_kind) {
            let kernel = shrink::Shrink { width: self.width, tail: kind };
            let blocks = self.matrices[self.matrix_of(p.linears[0])].blocks;
            let params = shrink::Params {
                rows: tail.ranks as u32,
                blocks: blocks as u32,
                x_row: x_row as u32,
                pad: 0,
                scales: std::array::from_fn(|adapter| scale_of(scales, adapter)),
            };
            let grid = shrink::Shrink::grid(tail.ranks, p.tokens);
            let adapter = [None, Some(tail.shrink.clone())];
            self.dispatch(recording, Kernel::Shrink(kernel), adapter, &[Place::Params, x], &params, grid)?;
        }
        let tail = tail.map(|(tail, _)| tail);
        for (i, id) in p.linears.iter().enumerate() {
            let (slot, mode) = match p.output {
                Output::Store(slots) => (slots[i], Mode::Store),
                Output::AddToResidual => (Slot::Residual, Mode::Add),
                Output::Gated(_) => (Slot::Gated, if i == 0 { Mode::Store } else { Mode::Gate }),
            };
            let linear = tail.and_then(|t| t.linears[i].as_ref());
            let matrix = &self.matrices[self.matrix_of(*id)];
            let int8 = inputs.int8 && matrix.kind.is_packed();
            let kernel = Project {
                shape: Shape::choose(self.caps.family, p.tokens),
                width: self.width,
                matrix: matrix.kind,
                int8,
                tail: linear.and(tail_kind),
            };
            let place = if int8 { Place::Rounded(Order::of(matrix.kind.weights)) } else { x };
            let places = [Place::Params, place, Place::Slot(slot)];
            let mut params = project::Params {
                blocks: matrix.blocks as u32,
                groups: matrix.groups as u32,
                group_blocks: matrix.group_blocks as u32,
                x_row: if int8 { 0 } else { x_row as u32 },
                tokens: p.tokens as u32,
                y_stride: stride(&self.model.recipe.shape, slot) as u32,
                mode: mode as u32,
                has_bias: u32::from(self.model.recipe.linears[id.0].bias.is_some()),
                tail_chunks: linear.map_or(0, |l| l.chunks as u32),
                inner_stride: tail.map_or(0, |t| (t.ranks / CHUNK) as u32),
                inner_offset: linear.map_or(0, |l| l.offset as u32),
                ..Default::default()
            };
            let rows: Vec<_> = matrix.parts.iter().map(|part| part.rows.clone()).collect();
            for (part, rows) in rows.into_iter().enumerate() {
                params.rows = rows.len() as u32;
                params.y_column = rows.start as u32;
                let base = self.linears[id.0].get(part).cloned();
                let adapter = linear.and_then(|l| l.parts.get(part).cloned());
                let grid = kernel.grid(rows.len(), p.tokens);
                let others = [base, adapter];
                self.dispatch(recording, Kernel::Project(kernel.tidy()), others, &places, &params, grid)?;
            }
        }
        Ok(())
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
            let kernel = Kernel::Prepare(Prepare { width: self.width, int8: true });
            let places = [Place::Params, slot, Place::Prepared, Place::Rounded(*order)];
            self.dispatch(recording, kernel, [Some(base.clone()), None], &places, &params, grid)?;
            params.keep = 0;
        }
        if copy && orders.is_empty() {
            let kernel = Kernel::Prepare(Prepare { width: self.width, int8: false });
            let places = [Place::Params, slot, Place::Prepared];
            self.dispatch(recording, kernel, [Some(base), None], &places, &params, grid)?;
        }
        let float = if copy { (Place::Prepared, 0) } else { (slot, p.first) };
        Ok(Inputs { float, int8 })
    }

    /// Rotary embedding, cache append, attention.
    pub(super) fn record_attend(
        &mut self,
        recording: &mut Recording,
        pass: &Forward<'_>,
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

        let kernel = rope::Rope { workgroup: self.width.workgroup, half };
        let params = rope::Params {
            tokens: tokens as u32,
            position: pass.position as u32,
            capacity,
            kv_heads: shape.kv_heads as u32,
            dim: dim as u32,
            chunks: chunks as u32,
            stride: stride(&shape, Slot::Key) as u32,
            pad: 0,
        };
        let pipeline = self.pipelines.get(&self.context, Kernel::Rope(kernel))?;
        let grid = kernel.grid(tokens, shape.kv_heads, chunks);
        recording.push(pipeline, [None, None, Some(rope_group)], &params, grid);

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
            pad: [0; 3],
        };
        let pipeline =
            self.pipelines.get(&self.context, Kernel::Attention(Attention { width: self.width, half }))?;
        let grid = Attention::grid(tokens, group, shape.kv_heads, spans.count);
        let out = if partly { spans_group } else { whole };
        recording.push(pipeline, [None, None, Some(out)], &params, grid);
        if !partly {
            return Ok(());
        }
        let kernel = Combine { workgroup: self.width.workgroup };
        let params = CombineParams {
            tokens: tokens as u32,
            heads: shape.heads as u32,
            dim: dim as u32,
            splits: spans.count as u32,
            stride: stride(&shape, Slot::Attended) as u32,
            pad: [0; 3],
        };
        let places = [Place::Params, Place::Spans, Place::Slot(Slot::Attended)];
        let grid = kernel.grid(tokens, shape.heads * dim);
        self.dispatch(recording, Kernel::Combine(kernel), [None, None], &places, &params, grid)
    }

    /// The likeliest token of the first row of logits.
    pub(super) fn record_argmax(&mut self, recording: &mut Recording) -> Result<()> {
        let workgroup = match self.caps.family {
            Family::Lanes => self.width.workgroup,
            Family::Split => argmax::GPU_WORKGROUP,
        };
        let kernel = Kernel::Argmax(argmax::Argmax { workgroup });
        let params = argmax::Params { vocab: self.model.recipe.shape.vocab as u32, pad: [0; 3] };
        let places = [Place::Params, Place::Slot(Slot::Logits), Place::Token];
        self.dispatch(recording, kernel, [None, None], &places, &params, [1, 1, 1])
    }
}
