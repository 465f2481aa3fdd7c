//! Causal attention over the KV cache, split over spans of positions where there are few queries.

use super::caps::{Family, Width};
use super::{Binding, Groups, fold, join, parts};

/// Attention over one span; a workgroup four queries of a key head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attention {
    pub(crate) width: Width,
    /// The cache holds f16.
    pub(crate) half: bool,
}

/// Joins spans; a lane an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Combine {
    pub(crate) workgroup: u32,
}

/// Parameters of [`Attention`], in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) tokens: u32,
    pub(crate) position: u32,
    pub(crate) capacity: u32,
    pub(crate) group: u32,
    pub(crate) dim: u32,
    pub(crate) chunks: u32,
    pub(crate) stride: u32,
    pub(crate) span: u32,
    pub(crate) out_token: u32,
    pub(crate) out_head: u32,
    pub(crate) out_split: u32,
    pub(crate) partly: u32,
    pub(crate) scale: f32,
    pub(crate) row: u32,
    pub(crate) out_first: u32,
    pub(crate) pad: u32,
}

/// Parameters of [`Combine`], in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct CombineParams {
    pub(crate) tokens: u32,
    pub(crate) heads: u32,
    pub(crate) dim: u32,
    pub(crate) splits: u32,
    pub(crate) stride: u32,
    pub(crate) row: u32,
    pub(crate) pad: [u32; 2],
}

/// Group 2: parameters, query, angles, the cache's two buffers, the output.
pub(crate) const BINDINGS: &[Binding] =
    &[Binding::Params, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::Write];

pub(crate) const GROUPS: Groups = [None, None, Some(BINDINGS)];

pub(crate) const COMBINE_GROUPS: Groups =
    [None, None, Some(&[Binding::Params, Binding::Read, Binding::Write])];

/// The largest head size: what the shader's shared memory holds.
pub(crate) const MAX_DIM: usize = 256;

/// Positions that a workgroup takes at a time.
const TILE: usize = 64;

/// Queries of one workgroup.
pub(crate) const QUERIES: usize = 4;

/// How the positions are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spans {
    /// Positions in each.
    pub(crate) span: usize,
    /// How many.
    pub(crate) count: usize,
}

impl Spans {
    /// Workgroups that keep a device busy; with as many from queries alone, positions stay together.
    pub(crate) const fn busy(family: Family) -> usize {
        match family {
            Family::Lanes => 16,
            Family::Split => 64,
        }
    }

    /// Cuts `positions` for `workgroups` that exist without cutting; at most `busy / workgroups` spans.
    pub(crate) fn choose(family: Family, workgroups: usize, positions: usize) -> Self {
        let wanted = (Self::busy(family) / workgroups.max(1)).clamp(1, positions.div_ceil(2 * TILE).max(1));
        let span = positions.div_ceil(wanted).next_multiple_of(TILE);
        Self { span, count: positions.div_ceil(span).max(1) }
    }
}

impl Attention {
    /// Workgroups per span.
    pub(crate) fn workgroups(tokens: usize, group: usize, kv_heads: usize) -> usize {
        (tokens * group).div_ceil(QUERIES) * kv_heads
    }

    pub(crate) fn grid(tokens: usize, group: usize, kv_heads: usize, spans: usize) -> [u32; 3] {
        [(tokens * group).div_ceil(QUERIES) as u32, kv_heads as u32, spans as u32]
    }

    pub(crate) fn name(&self) -> String {
        format!("Attention {} · cache {}", self.width, if self.half { "f16" } else { "f32" })
    }

    pub(crate) fn source(&self) -> String {
        let cache = if self.half { parts::CACHE_F16 } else { parts::CACHE_F32 };
        join(self.width.workgroup, false, &[self.width.reduce.part(), cache, parts::ATTENTION])
    }
}

impl Combine {
    pub(crate) fn grid(&self, tokens: usize, width: usize) -> [u32; 3] {
        fold((tokens * width).div_ceil(self.workgroup as usize), 1)
    }

    pub(crate) fn name(&self) -> String {
        format!("Combine {} lanes", self.workgroup)
    }

    pub(crate) fn source(&self) -> String {
        join(self.workgroup, false, &[parts::LANE_ONLY, parts::ATTENTION_COMBINE])
    }
}
