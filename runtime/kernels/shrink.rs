//! The low-rank tail's inner values: one dispatch for all linears that share an input.

use super::caps::Width;
use super::project::TailKind;
use super::{Binding, Groups, join, parts};
use crate::device::MOST_ADAPTERS;

/// The shrink kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shrink {
    pub(crate) width: Width,
    pub(crate) tail: TailKind,
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) rows: u32,
    pub(crate) blocks: u32,
    pub(crate) x_row: u32,
    pub(crate) inner_row: u32,
    pub(crate) down_first: u32,
    pub(crate) factor_first: u32,
    pub(crate) pad: [u32; 2],
    /// One for each adapter.
    pub(crate) scales: [f32; MOST_ADAPTERS],
}

/// What stands beside a rank's scaling: its adapter, and whether a GELU comes first.
pub(crate) fn kind(adapter: usize, is_gelu: bool) -> f32 {
    (2 * adapter + usize::from(is_gelu)) as f32
}

/// Group 1: down, factors, inner.
pub(crate) const ADAPTER: &[Binding] = &[Binding::Read, Binding::Read, Binding::Write];

pub(crate) const GROUPS: Groups = [None, Some(ADAPTER), Some(&[Binding::Params, Binding::Read])];

impl Shrink {
    /// Workgroups for `rows` ranks (a multiple of 4) of `tokens` input rows.
    pub(crate) fn grid(rows: usize, tokens: usize) -> [u32; 3] {
        [(rows / 4) as u32, tokens as u32, 1]
    }

    pub(crate) fn name(&self) -> String {
        format!("Shrink {} · {:?}", self.width, self.tail)
    }

    pub(crate) fn source(&self) -> String {
        let down = match self.tail {
            TailKind::F32 => parts::DOWN_F32,
            TailKind::F16 => parts::DOWN_F16,
            TailKind::Half => parts::DOWN_HALF,
        };
        let list = [self.width.reduce.part(), parts::BLOCK, down, parts::SHRINK];
        join(self.width.workgroup, self.tail == TailKind::Half, &list)
    }

    pub(crate) fn all(widths: &[Width]) -> Vec<Self> {
        widths.iter().flat_map(|width| TailKind::ALL.map(|tail| Self { width: *width, tail })).collect()
    }
}
