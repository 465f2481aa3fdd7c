//! KV caches: each layer's keys and values, float32 for float activations, half precision for int8 ones.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::arch::{ModelShape, Slot};
use crate::device::{Activations, position_bytes};
use crate::error::{Error, Result};

/// Positions' keys or values of one layer, (KV heads, S, D).
enum Lines {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl Lines {
    fn write(&mut self, start: usize, line: &[f32]) {
        match self {
            Self::F32(all) => all[start..start + line.len()].copy_from_slice(line),
            Self::F16(all) => all[start..start + line.len()].convert_from_f32_slice(line),
        }
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        match self {
            Self::F32(all) => bytemuck::cast_slice(&all[range]),
            Self::F16(all) => bytemuck::cast_slice(&all[range]),
        }
    }

    fn bytes_mut(&mut self, range: Range<usize>) -> &mut [u8] {
        match self {
            Self::F32(all) => bytemuck::cast_slice_mut(&mut all[range]),
            Self::F16(all) => bytemuck::cast_slice_mut(&mut all[range]),
        }
    }

    /// `len` values from `start` as float32, in `scratch` where they are not stored so.
    fn read<'a>(&'a self, start: usize, len: usize, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::F32(all) => &all[start..start + len],
            Self::F16(all) => {
                scratch.resize(len, 0.0);
                all[start..start + len].convert_to_f32_slice(scratch);
                scratch
            }
        }
    }
}

/// Keys and values of one layer.
pub(super) struct Layer {
    keys: Lines,
    values: Lines,
    capacity: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Layer {
    /// Puts down the keys and values of one position, (KV heads * D) each.
    pub(super) fn write(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let d = self.head_dim;
        for (head, (key, value)) in key.chunks_exact(d).zip(value.chunks_exact(d)).enumerate() {
            let start = (head * self.capacity + position) * d;
            self.keys.write(start, key);
            self.values.write(start, value);
        }
    }

    /// Where each head's elements of one position lie.
    fn heads(&self, position: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (stride, d, start) = (self.capacity * self.head_dim, self.head_dim, position * self.head_dim);
        (0..self.kv_heads).map(move |head| head * stride + start..head * stride + start + d)
    }

    /// The keys of one head at `first .. first + count`, (count, D).
    pub(super) fn keys<'a>(
        &'a self,
        head: usize,
        first: usize,
        count: usize,
        s: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.keys.read((head * self.capacity + first) * self.head_dim, count * self.head_dim, s)
    }

    /// The values of one head at `first .. first + count`, (count, D).
    pub(super) fn values<'a>(
        &'a self,
        head: usize,
        first: usize,
        count: usize,
        s: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        self.values.read((head * self.capacity + first) * self.head_dim, count * self.head_dim, s)
    }
}

/// All layers.
pub(super) struct Cache {
    pub(super) layers: Vec<Layer>,
    /// S.
    pub(super) capacity: usize,
    /// Held.
    pub(super) bytes: u64,
}

impl Cache {
    /// An empty cache for `capacity` positions; the system hands out its pages as they are written.
    pub(super) fn new(shape: &ModelShape, capacity: usize, activations: Activations) -> Result<Self> {
        let lines = shape.width(Slot::Key).checked_mul(capacity);
        let bytes = position_bytes(shape, activations).checked_mul(capacity);
        let out_of_memory = |bytes: usize, reason: String| Error::OutOfMemory {
            what: format!("a KV cache of {capacity} positions"),
            bytes: bytes as u64,
            reason,
        };
        let (Some(lines), Some(bytes)) = (lines, bytes) else {
            return Err(out_of_memory(usize::MAX, "more than this machine can address".into()));
        };
        // A refused reservation is an error here, where a failed allocation would abort; no page is touched.
        Vec::<u8>::new().try_reserve_exact(bytes).map_err(|e| out_of_memory(bytes, e.to_string()))?;
        let empty = || match activations {
            Activations::F32 => Lines::F32(vec![0.0; lines]),
            Activations::Int8 => Lines::F16(vec![f16::ZERO; lines]),
        };
        let layers = (0..shape.layers)
            .map(|_| Layer {
                keys: empty(),
                values: empty(),
                capacity,
                kv_heads: shape.kv_heads,
                head_dim: shape.head_dim,
            })
            .collect();
        Ok(Self { layers, capacity, bytes: bytes as u64 })
    }

    /// The first positions' keys and values, (positions, layers, 2, KV heads * D).
    pub(super) fn read(&self, positions: usize, out: &mut Vec<u8>) {
        for position in 0..positions {
            for layer in &self.layers {
                for lines in [&layer.keys, &layer.values] {
                    layer.heads(position).for_each(|range| out.extend_from_slice(lines.bytes(range)));
                }
            }
        }
    }

    /// Puts down what [`Cache::read`] gave.
    pub(super) fn write(&mut self, positions: usize, mut bytes: &[u8]) {
        for position in 0..positions {
            for layer in &mut self.layers {
                for range in layer.heads(position) {
                    take(&mut bytes, layer.keys.bytes_mut(range));
                }
                for range in layer.heads(position) {
                    take(&mut bytes, layer.values.bytes_mut(range));
                }
            }
        }
    }
}

/// Moves the beginning of `bytes` to `to`.
fn take(bytes: &mut &[u8], to: &mut [u8]) {
    let (first, rest) = bytes.split_at(to.len().min(bytes.len()));
    to[..first.len()].copy_from_slice(first);
    *bytes = rest;
}
