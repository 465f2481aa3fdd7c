//! KV caches: two buffers a layer, float32 for float activations and f16 pairs for int8 ones.

use super::context::Context;
use super::pipeline::Pipelines;
use super::scratch::{Place, Scratch};
use crate::arch::{ModelShape, Slot};
use crate::error::{Error, Result};
use crate::kernels::{Binding, attention, rope};

/// One session's keys and values.
pub(super) struct GpuCache {
    /// S.
    pub(super) capacity: usize,
    pub(super) layers: Vec<LayerCache>,
    pub(super) bytes: u64,
}

/// One layer's buffers and the groups that reach them.
pub(super) struct LayerCache {
    /// (KV heads, S, D / 4).
    keys: wgpu::Buffer,
    /// (KV heads, S, D / 4).
    values: wgpu::Buffer,
    /// Appends.
    pub(super) rope: wgpu::BindGroup,
    /// Attention straight to the attended slot.
    pub(super) whole: wgpu::BindGroup,
    /// Attention to spans.
    pub(super) spans: wgpu::BindGroup,
}

impl GpuCache {
    /// Room for `positions` tokens.
    pub(super) fn new(
        context: &Context,
        pipelines: &mut Pipelines,
        scratch: &Scratch,
        shape: &ModelShape,
        positions: usize,
        half: bool,
    ) -> Result<Self> {
        let step = if half { 8 } else { 16 };
        let chunks = shape.head_dim.div_ceil(4);
        let bytes = (shape.kv_heads * chunks * step) as u64;
        let bytes = bytes.saturating_mul(positions as u64).min(u64::MAX / 2);
        let mut this = Self { capacity: positions, layers: Vec::new(), bytes: 0 };
        for _ in 0..shape.layers {
            let what = format!("a layer's cache of {positions} positions");
            let (keys, values) = (context.storage(&what, bytes)?, context.storage(&what, bytes)?);
            this.bytes += keys.size() + values.size();
            let mut bind =
                |bindings: &'static [Binding], places: &[Place], cache: [&wgpu::Buffer; 2], out| {
                    let mut buffers = Vec::new();
                    for place in places {
                        buffers.push(scratch.buffer(*place).ok_or_else(|| missing(*place))?);
                    }
                    buffers.extend(cache);
                    if let Some(out) = out {
                        buffers.push(scratch.buffer(out).ok_or_else(|| missing(out))?);
                    }
                    pipelines.bind(context, bindings, &buffers)
                };
            let cache = [&keys, &values];
            let appended = [Place::Params, Place::Slot(Slot::Key), Place::Slot(Slot::Value), Place::Angles];
            let read = [Place::Params, Place::Slot(Slot::Query), Place::Angles];
            this.layers.push(LayerCache {
                rope: bind(rope::BINDINGS, &appended, cache, None)?,
                whole: bind(attention::BINDINGS, &read, cache, Some(Place::Slot(Slot::Attended)))?,
                spans: bind(attention::BINDINGS, &read, cache, Some(Place::Spans))?,
                keys,
                values,
            });
        }
        Ok(this)
    }

    /// The first positions' keys and values, (positions, layers, 2, KV heads * D): one submit, one readback.
    pub(super) fn read(&self, context: &Context, at: &Lines, positions: usize) -> Result<Vec<u8>> {
        let head = at.padded * positions;
        if head == 0 {
            return Ok(Vec::new());
        }
        let total = (head * at.heads * 2 * self.layers.len()) as u64;
        let target = context.buffer("a copy of a cache", total, wgpu::BufferUsages::MAP_READ)?;
        context.guard("a copy of a cache", total, || {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            for (buffer, to) in self.buffers().zip((0..).step_by(head * at.heads)) {
                for h in 0..at.heads {
                    let (from, to) = (h * self.capacity * at.padded, to + h * head);
                    encoder.copy_buffer_to_buffer(buffer, from as u64, &target, to as u64, head as u64);
                }
            }
            context.queue.submit([encoder.finish()]);
        })?;
        let bytes = context.read(&target, total)?;
        let mut out = Vec::with_capacity(positions * at.line * at.heads * 2 * self.layers.len());
        for position in 0..positions {
            for start in (0..total as usize).step_by(head) {
                let start = start + position * at.padded;
                out.extend_from_slice(&bytes[start..start + at.line]);
            }
        }
        Ok(out)
    }

    /// Puts down what [`GpuCache::read`] gave.
    pub(super) fn write(&self, context: &Context, at: &Lines, positions: usize, bytes: &[u8]) -> Result<()> {
        let heads = at.heads * 2 * self.layers.len();
        let mut rows = vec![0; positions * at.padded];
        for (index, buffer) in self.buffers().enumerate() {
            for h in 0..at.heads {
                for (position, row) in rows.chunks_exact_mut(at.padded).enumerate() {
                    let start = (position * heads + index * at.heads + h) * at.line;
                    row[..at.line].copy_from_slice(&bytes[start..start + at.line]);
                }
                let offset = h * self.capacity * at.padded;
                context.write("a copy of a cache", buffer, offset as u64, &rows)?;
            }
        }
        Ok(())
    }

    /// Keys and values of the first layer, of the second, and so on.
    fn buffers(&self) -> impl Iterator<Item = &wgpu::Buffer> {
        self.layers.iter().flat_map(|layer| [&layer.keys, &layer.values])
    }
}

/// How one head's elements of one position lie, in bytes.
pub(super) struct Lines {
    heads: usize,
    /// D.
    line: usize,
    /// D, padded to whole vectors of four.
    padded: usize,
}

impl Lines {
    pub(super) fn new(shape: &ModelShape, half: bool) -> Self {
        let element = if half { 2 } else { 4 };
        let (line, padded) = (shape.head_dim * element, shape.head_dim.next_multiple_of(4) * element);
        Self { heads: shape.kv_heads, line, padded }
    }
}

fn missing(place: Place) -> Error {
    Error::Gpu { what: "a cache".into(), reason: format!("there is no working memory for {place:?}") }
}
