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

/// The groups that reach one layer's buffers.
pub(super) struct LayerCache {
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
            });
        }
        Ok(this)
    }
}

fn missing(place: Place) -> Error {
    Error::Gpu { what: "a cache".into(), reason: format!("there is no working memory for {place:?}") }
}
