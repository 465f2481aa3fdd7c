//! Steps become dispatches: one recording holds as many as their parameters have room in one buffer, for one submit. A
//! pass alone always fits.

mod project;

pub(super) use project::{Branches, Projection};

use super::GpuDevice;
use super::pipeline::PARAMS_STRIDE;
use super::scratch::{Place, stride};
use crate::arch::{MatrixId, Slot};
use crate::device::{Activations, Forward};
use crate::error::{Error, Result};
use crate::kernels::attention::{Attention, Combine, CombineParams, Spans};
use crate::kernels::{Kernel, Variant, argmax, attention, embed, rope};

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
