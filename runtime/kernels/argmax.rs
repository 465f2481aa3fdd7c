//! The likeliest token, found on the device so that decoding reads back four bytes.

use super::{Binding, Groups, join, parts};

/// The argmax kernel; one workgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Argmax {
    pub(crate) workgroup: u32,
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) vocab: u32,
    pub(crate) row: u32,
    pub(crate) pad: [u32; 2],
}

/// Lanes on GPUs: one workgroup walks the whole vocabulary.
pub(crate) const GPU_WORKGROUP: u32 = 256;

pub(crate) const GROUPS: Groups = [None, None, Some(&[Binding::Params, Binding::Read, Binding::Write])];

impl Argmax {
    pub(crate) fn name(&self) -> String {
        format!("Argmax {} lanes", self.workgroup)
    }

    pub(crate) fn source(&self) -> String {
        join(self.workgroup, false, &[parts::LANE_ONLY, parts::ARGMAX])
    }
}
