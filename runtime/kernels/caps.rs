//! What a GPU can do, as plain data, and the workgroup shapes that follow from it.
//!
//! Tests mask these facts to reach every fallback on one machine.

use super::parts;

/// The two ways of laying a matrix product over a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Rows per lane, no barrier: software Vulkan and other devices of CPU type.
    Lanes,
    /// K over the lanes of a workgroup, one reduction: GPUs.
    Split,
}

/// Facts of a device that choose kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Which kernels.
    pub family: Family,
    /// Whether subgroup operations may be used.
    pub subgroups: bool,
    /// Lanes of the smallest subgroup; 0 where unknown.
    pub subgroup_size: u32,
    /// Whether shaders have 16-bit floats in storage.
    pub f16: bool,
    /// The most bytes of a matrix (or its scales) behind one binding; larger ones are split by rows.
    pub max_binding: u64,
}

/// How a workgroup adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reduce {
    /// Shared memory only.
    Tree,
    /// Subgroups, then shared memory.
    Subgroup,
    /// The workgroup is one subgroup.
    Single,
}

impl Reduce {
    /// The shader part.
    pub(crate) fn part(self) -> &'static str {
        match self {
            Self::Tree => parts::REDUCE_TREE,
            Self::Subgroup => parts::REDUCE_SUBGROUP,
            Self::Single => parts::REDUCE_SINGLE,
        }
    }
}

/// A workgroup's size and reduction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Width {
    pub(crate) workgroup: u32,
    pub(crate) reduce: Reduce,
}

impl std::fmt::Display for Width {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} lanes {:?}", self.workgroup, self.reduce)
    }
}

/// Lanes of a workgroup on GPUs: two to eight subgroups of the usual sizes, and what the prefill tile is made for.
pub(crate) const GPU_WORKGROUP: u32 = 64;

impl Caps {
    /// The workgroup of this device's kernels.
    pub(crate) fn width(&self) -> Width {
        match self.family {
            Family::Split => Width {
                workgroup: GPU_WORKGROUP,
                reduce: if self.subgroups { Reduce::Subgroup } else { Reduce::Tree },
            },
            Family::Lanes => {
                // One subgroup a workgroup: measured fastest on software Vulkan, whose subgroups are 4 to 16 lanes.
                let known = matches!(self.subgroup_size, 4 | 8 | 16 | 32 | 64);
                let workgroup = if known { self.subgroup_size } else { 8 };
                let reduce = if known && self.subgroups { Reduce::Single } else { Reduce::Tree };
                Width { workgroup, reduce }
            }
        }
    }
}

impl Width {
    /// Every width worth validating: the sizes of software Vulkan and the GPU's.
    pub(crate) fn all() -> Vec<Self> {
        vec![
            Self { workgroup: 4, reduce: Reduce::Single },
            Self { workgroup: 8, reduce: Reduce::Single },
            Self { workgroup: 8, reduce: Reduce::Tree },
            Self { workgroup: 16, reduce: Reduce::Single },
            Self { workgroup: GPU_WORKGROUP, reduce: Reduce::Tree },
            Self { workgroup: GPU_WORKGROUP, reduce: Reduce::Subgroup },
        ]
    }
}
