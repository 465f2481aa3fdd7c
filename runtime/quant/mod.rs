//! Weight schemes as plain data: how integers, scales and zero points stand for weights.
//!
//! The layout in files *and* in device memory is that of compressed-tensors' `pack-quantized` format (checked against
//! compressed-tensors 0.20): a row of `K` weights is `ceil(K * bits / 32)` little-endian u32 words, lowest bits first,
//! each weight stored as an unsigned integer `q` with an offset of `2^(bits-1)`:
//!
//! ```text
//! int4 word   bits 0..4 = q[8w], 4..8 = q[8w+1], … 28..32 = q[8w+7]
//! int8 word   bits 0..8 = q[4w], … 24..32 = q[4w+3]
//! weight      w[k] = (q[k] - zero_point[group]) * scale[group],  group = k / group_size
//! ```
//!
//! Symmetric schemes have the constant zero point `2^(bits-1)`; asymmetric ones store it with the same offset.

pub mod activations;
pub mod pack;
pub mod round;

use crate::error::{Error, Result};

/// How many bits a compressed weight has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Four bits, eight weights a word.
    Int4,
    /// Eight bits, four weights a word.
    Int8,
}

impl Bits {
    /// The number of bits.
    pub const fn count(self) -> usize {
        match self {
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    /// Weights in one u32 word.
    pub const fn per_word(self) -> usize {
        32 / self.count()
    }

    /// The stored value of weight zero in a symmetric scheme: `2^(bits-1)`.
    pub const fn offset(self) -> i32 {
        1 << (self.count() - 1)
    }

    /// The scheme with this many bits.
    pub fn from_count(bits: u64) -> Option<Self> {
        match bits {
            4 => Some(Self::Int4),
            8 => Some(Self::Int8),
            _ => None,
        }
    }
}

/// How many weights along the input share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// This many; it divides the input width.
    Size(usize),
    /// A whole row (one output channel).
    Channel,
}

/// A weight scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// Bits per weight.
    pub bits: Bits,
    /// Weights per scale.
    pub group: Group,
    /// No stored zero points.
    pub symmetric: bool,
}

impl Scheme {
    /// Weights per scale for rows of `cols` weights.
    pub fn group_size(self, cols: usize) -> usize {
        match self.group {
            Group::Size(size) => size,
            Group::Channel => cols.max(1),
        }
    }

    /// Scales per row of `cols` weights.
    pub fn groups(self, cols: usize) -> usize {
        cols.div_ceil(self.group_size(cols))
    }

    /// Words per row of `cols` weights.
    pub fn words(self, cols: usize) -> usize {
        cols.div_ceil(self.bits.per_word())
    }

    /// Refuses what compressed-tensors refuses: a group that does not divide the input width.
    pub fn check(self, cols: usize) -> Result<()> {
        match self.group {
            Group::Size(size) if size == 0 || !size.is_multiple_of(32) => {
                Err(Error::option("group size", size, "must be a multiple of 32"))
            }
            Group::Size(size) if !cols.is_multiple_of(size) => {
                Err(Error::option("group size", size, format!("does not divide the input width {cols}")))
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "int{}", self.bits.count())?;
        match self.group {
            Group::Size(size) => write!(f, " g{size}")?,
            Group::Channel => write!(f, " per-channel")?,
        }
        if self.symmetric { Ok(()) } else { write!(f, " asymmetric") }
    }
}
