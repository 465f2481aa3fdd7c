//! A step's input: RMS norm, and rounding to int8 where compressed linears read it.

use super::caps::Width;
use super::project::WeightKind;
use super::{Binding, Groups, join, parts};

/// The prepare kernel; a workgroup a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Prepare {
    pub(crate) width: Width,
    /// Also writes int8.
    pub(crate) int8: bool,
}

/// The order of int8 values within each sixteen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Order {
    /// As they come: for int8 weights.
    Natural = 0,
    /// Even elements, then odd: for int4 weights.
    EvenOdd = 1,
    /// Each fourth: for int2 and int3 weights.
    Fourths = 2,
}

impl Order {
    /// All.
    pub(crate) const ALL: [Self; 3] = [Self::Natural, Self::EvenOdd, Self::Fourths];

    /// That which packed weights of this kind read.
    pub(crate) const fn of(weights: WeightKind) -> Self {
        match weights {
            WeightKind::Int2 | WeightKind::Int3 => Self::Fourths,
            WeightKind::Int4 => Self::EvenOdd,
            _ => Self::Natural,
        }
    }
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) blocks: u32,
    pub(crate) cols: u32,
    pub(crate) first_row: u32,
    pub(crate) normalise: u32,
    pub(crate) keep: u32,
    pub(crate) order: u32,
    pub(crate) epsilon: f32,
    pub(crate) pad: u32,
}

impl Prepare {
    pub(crate) fn groups(&self) -> Groups {
        const FLOAT: &[Binding] = &[Binding::Params, Binding::Read, Binding::Write];
        const INT8: &[Binding] = &[Binding::Params, Binding::Read, Binding::Write, Binding::Write];
        [Some(&[Binding::Read]), None, Some(if self.int8 { INT8 } else { FLOAT })]
    }

    pub(crate) fn name(&self) -> String {
        format!("Prepare {} · {}", self.width, if self.int8 { "int8" } else { "f32" })
    }

    pub(crate) fn source(&self) -> String {
        let quantise = if self.int8 { parts::QUANTISE_INT8 } else { parts::QUANTISE_NONE };
        let list = [self.width.reduce.part(), parts::BLOCK, quantise, parts::PREPARE];
        join(self.width.workgroup, false, &list)
    }
}
