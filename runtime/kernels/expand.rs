//! The up half of the low-rank tail on its own: what one adapter of a batch adds to its rows.

use super::project::{self, TailKind};
use super::{Binding, Groups, fold, join, parts};

/// The expand kernel; a lane an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Expand {
    pub(crate) workgroup: u32,
    pub(crate) tail: TailKind,
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) rows: u32,
    pub(crate) tokens: u32,
    pub(crate) tail_chunks: u32,
    pub(crate) inner_stride: u32,
    pub(crate) inner_offset: u32,
    pub(crate) y_row: u32,
    pub(crate) y_stride: u32,
    pub(crate) y_column: u32,
    pub(crate) y_chunks: u32,
    pub(crate) up_first: u32,
    pub(crate) pad: [u32; 2],
}

pub(crate) const GROUPS: Groups = [None, Some(project::ADAPTER), Some(&[Binding::Params, Binding::Write])];

impl Expand {
    /// Workgroups for `chunks` chunks of `rows` rows of `tokens` tokens.
    pub(crate) fn grid(&self, rows: usize, tokens: usize, chunks: usize) -> [u32; 3] {
        fold((rows * tokens * chunks).div_ceil(self.workgroup as usize), 1)
    }

    pub(crate) fn name(&self) -> String {
        format!("Expand {} lanes · {:?}", self.workgroup, self.tail)
    }

    pub(crate) fn source(&self) -> String {
        let list = [parts::LANE_ONLY, self.tail.part(), parts::EXPAND];
        join(self.workgroup, self.tail == TailKind::Half, &list)
    }
}
