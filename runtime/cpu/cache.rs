//! KV caches: each layer's keys and values, float32 for float activations, half precision for int8 ones.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::arch::{ModelShape, Slot};
use crate::device::Activations;
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
        let element = match activations {
            Activations::F32 => 4,
            Activations::Int8 => 2,
        };
        let lines = shape.width(Slot::Key).checked_mul(capacity);
        let bytes = lines.and_then(|n| n.checked_mul(element)?.checked_mul(2)?.checked_mul(shape.layers));
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
            .map(|_| Layer { keys: empty(), values: empty(), capacity, head_dim: shape.head_dim })
            .collect();
        Ok(Self { layers, capacity, bytes: bytes as u64 })
    }
}
