//! Rotates keys and appends keys and values to a layer's cache.

use super::{Binding, Groups, fold, join, parts};

/// The rope kernel; a lane four elements of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Rope {
    pub(crate) workgroup: u32,
    /// The cache holds f16.
    pub(crate) half: bool,
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) tokens: u32,
    pub(crate) position: u32,
    pub(crate) capacity: u32,
    pub(crate) kv_heads: u32,
    pub(crate) dim: u32,
    pub(crate) chunks: u32,
    pub(crate) stride: u32,
    pub(crate) row: u32,
}

/// Group 2: parameters, key, value, angles, and the cache's two buffers.
pub(crate) const BINDINGS: &[Binding] =
    &[Binding::Params, Binding::Read, Binding::Read, Binding::Read, Binding::Write, Binding::Write];

pub(crate) const GROUPS: Groups = [None, None, Some(BINDINGS)];

impl Rope {
    pub(crate) fn grid(&self, tokens: usize, kv_heads: usize, chunks: usize) -> [u32; 3] {
        fold((tokens * kv_heads * chunks).div_ceil(self.workgroup as usize), 1)
    }

    pub(crate) fn name(&self) -> String {
        format!("Rope {} lanes · cache {}", self.workgroup, if self.half { "f16" } else { "f32" })
    }

    pub(crate) fn source(&self) -> String {
        let cache = if self.half { parts::CACHE_F16 } else { parts::CACHE_F32 };
        join(self.workgroup, false, &[parts::LANE_ONLY, cache, parts::ROPE])
    }
}
