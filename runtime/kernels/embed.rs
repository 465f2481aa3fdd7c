//! Embedding rows into the residual, from a table in any stored form.

use super::caps::Width;
use super::project::MatrixKind;
use super::{Binding, Groups, MATRIX, fold, join, parts};

/// The embed kernel; a lane a block of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Embed {
    pub(crate) workgroup: u32,
    pub(crate) matrix: MatrixKind,
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) first_row: u32,
    pub(crate) rows: u32,
    pub(crate) blocks: u32,
    pub(crate) cols: u32,
    pub(crate) groups: u32,
    pub(crate) group_blocks: u32,
    pub(crate) tokens: u32,
    pub(crate) pad: u32,
}

pub(crate) const GROUPS: Groups =
    [Some(MATRIX), None, Some(&[Binding::Params, Binding::Read, Binding::Write])];

impl Embed {
    pub(crate) fn grid(&self, tokens: usize, blocks: usize) -> [u32; 3] {
        fold((tokens * blocks).div_ceil(self.workgroup as usize), 1)
    }

    pub(crate) fn name(&self) -> String {
        format!("Embed {} lanes · {}", self.workgroup, self.matrix)
    }

    pub(crate) fn source(&self) -> String {
        let mut list = vec![parts::LANE_ONLY, parts::BLOCK];
        list.extend(self.matrix.parts());
        list.push(parts::EMBED);
        join(self.workgroup, false, &list)
    }

    pub(crate) fn all(widths: &[Width]) -> Vec<Self> {
        let kinds = MatrixKind::all();
        let of = |w: &Width| {
            let workgroup = w.workgroup;
            kinds.iter().map(move |matrix| Self { workgroup, matrix: *matrix }).collect::<Vec<_>>()
        };
        widths.iter().flat_map(of).collect()
    }
}
