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
//!
//! # Int3 and int2: calora's extension
//!
//! Below four bits compressed-tensors' range -2..=1 (or -4..=3) wastes a quarter (an eighth) of the levels. These two
//! schemes are *mid-rise*: the levels are symmetric halves, none of them zero, and there are no zero points:
//!
//! ```text
//! weight      w[k] = (q[k] - (2^bits - 1) / 2) * scale[k / group_size]
//! int2        -1.5  -0.5  0.5  1.5                       times scale
//! int3        -3.5  -2.5  -1.5  -0.5  0.5  1.5  2.5  3.5 times scale
//! ```
//!
//! A row is padded to whole blocks of 32 weights, an int2 block two words, an int3 block the same two words for the low
//! two bits of its integers and a third for the high ones, so that both share one path in every kernel:
//!
//! ```text
//! int2 word   bits 0..2 = q[16w], 2..4 = q[16w+1], … 30..32 = q[16w+15]
//! int3 block  words 0, 1 = q & 3 as int2;  word 2: the high bit of q[k] at bit 8 (k / 4 % 4) + 4 (k / 16) + k % 4
//! ```
//!
//! The order of the high bits is that of bytes: byte `j` of words 0 and 1 has weights `4j..4j+4` and `16+4j..16+4j+4`,
//! and byte `j` of word 2 has their high bits in its low and its high nibble. A kernel that takes every fourth weight
//! out of a word by one shift and one mask (four bytes a u32 on a GPU, whole registers on a CPU) takes the high bits the
//! same way, without moving bits between bytes.
//!
//! In integers `w = (2 q - (2^bits - 1)) * scale / 2`: kernels unpack the doubled integer, which costs nothing (another
//! shift, another mask), and the arithmetic stays exact.
//!
//! `config.json` declares such folders as compressed-tensors would, but with `"format": "calora-mid-rise"`, over all and in
//! the groups concerned, and with `"levels": "mid-rise"` in the weights of these: compressed-tensors refuses both. (A
//! `quant_method` of calora's own would be safer by name only: transformers 5.23 warns of an unknown one, skips it and
//! loads random weights.)

pub mod activations;
pub mod grid;
mod mid_rise;
pub mod pack;
pub mod round;

use crate::error::{Error, Result};

/// How many bits a compressed weight has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Two bits, mid-rise, 16 weights a word.
    Int2,
    /// Three bits, mid-rise, 32 weights in three words.
    Int3,
    /// Four bits, eight weights a word.
    Int4,
    /// Eight bits, four weights a word.
    Int8,
}

impl Bits {
    /// The number of bits.
    pub const fn count(self) -> usize {
        match self {
            Self::Int2 => 2,
            Self::Int3 => 3,
            Self::Int4 => 4,
            Self::Int8 => 8,
        }
    }

    /// Whether the levels are symmetric halves, without zero points: int2 and int3.
    pub const fn is_mid_rise(self) -> bool {
        matches!(self, Self::Int2 | Self::Int3)
    }

    /// u32 words of a row of `len` integers.
    pub const fn words(self, len: usize) -> usize {
        match self {
            Self::Int2 | Self::Int3 => len.div_ceil(activations::BLOCK) * self.count(),
            Self::Int4 | Self::Int8 => len.div_ceil(32 / self.count()),
        }
    }

    /// Half of the number of levels, `2^(bits-1)`: the stored value of weight zero in a symmetric int4 or int8 scheme.
    pub const fn offset(self) -> i32 {
        1 << (self.count() - 1)
    }

    /// What is taken from a stored integer of a symmetric scheme before the scale multiplies it: 1.5, 3.5, 8 or 128.
    pub const fn zero(self) -> f32 {
        if self.is_mid_rise() { self.offset() as f32 - 0.5 } else { self.offset() as f32 }
    }

    /// What integer kernels multiply a stored integer with, so that levels at halves become integers: 2 where mid-rise,
    /// else 1. They compute `w = (multiplier q - integer_zero) * scale / multiplier`.
    pub const fn multiplier(self) -> i32 {
        if self.is_mid_rise() { 2 } else { 1 }
    }

    /// The zero point of a symmetric scheme among those integers: 3, 7, 8 or 128.
    pub const fn integer_zero(self) -> i32 {
        if self.is_mid_rise() { 2 * self.offset() - 1 } else { self.offset() }
    }

    /// The scheme with this many bits.
    pub fn from_count(bits: u64) -> Option<Self> {
        match bits {
            2 => Some(Self::Int2),
            3 => Some(Self::Int3),
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
        self.bits.words(cols)
    }

    /// Refuses what compressed-tensors refuses, a group that does not divide the input width, and mid-rise levels with
    /// zero points.
    pub fn check(self, cols: usize) -> Result<()> {
        if self.bits.is_mid_rise() && !self.symmetric {
            return Err(Error::option("scheme", self, "int2 and int3 have no zero points"));
        }
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
