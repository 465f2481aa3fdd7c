//! Dot products of one stored weight row with a few tokens, one file per instruction set.
//!
//! Invariant: a token's result does not depend on how many tokens share the call, and integer kernels return the same
//! bits on every instruction set. Both hold because sums are kept in fixed lanes: integer kernels have [`LANES`] float
//! lanes a token, one for eight products of each fourth block, multiplied and added (not fused) block after block, and
//! folded by [`fold`]; float kernels have a lane for each place in a block.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
mod products;

use crate::quant::Bits;
use crate::quant::activations::BLOCK;

/// Float lanes of an integer kernel.
pub(super) const LANES: usize = 16;
/// Blocks that fill the lanes once: four lanes a block.
pub(super) const TILE: usize = 4;
/// Weights in a tile.
pub(super) const TILE_WEIGHTS: usize = TILE * BLOCK;

/// An instruction set that the dot products are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Simd {
    /// Plain Rust, on every machine.
    Portable,
    /// x86 AVX2, FMA and F16C.
    Avx2,
    /// x86 AVX-512 with VNNI.
    Avx512,
    /// Arm with the dot product instructions.
    Neon,
}

impl Simd {
    /// What this machine has, slowest first.
    pub fn available() -> Vec<Self> {
        let all = [Self::Portable, Self::Avx2, Self::Avx512, Self::Neon];
        all.into_iter().filter(|simd| simd.kernels().is_some()).collect()
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// Its kernels; `None` where the machine lacks the instructions, so that no kernel can be called in vain.
    pub(super) fn kernels(self) -> Option<Kernels> {
        match self {
            Self::Portable => Some(portable::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::kernels(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::kernels(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::kernels(),
            #[allow(unreachable_patterns)] // each machine lacks some
            _ => None,
        }
    }
}

/// The kernels of one instruction set; `out.len()` is the number of tokens.
#[derive(Clone, Copy)]
pub(super) struct Kernels {
    /// `out[t] = Σ_k w[k] x[t][k]` with float activations.
    pub(super) float: fn(&Row<'_>, Floats<'_>, &mut [f32]),
    /// The same with int8 activations.
    pub(super) int: fn(&PackedRow<'_>, Ints<'_>, &mut [f32]),
    /// `scores[s] = q · keys[s]` for keys (S, D).
    pub(super) scores: fn(&[f32], &[f32], &mut [f32]),
    /// `out += Σ_s weights[s] values[s]` for values (S, D).
    pub(super) mix: fn(&[f32], &[f32], &mut [f32]),
}

/// One row of a matrix as it lies in its file.
#[derive(Clone, Copy)]
pub(super) enum Row<'a> {
    F32(&'a [u8]),
    F16(&'a [u8]),
    BF16(&'a [u8]),
    Packed(PackedRow<'a>),
}

/// One compressed row.
#[derive(Clone, Copy)]
pub(super) struct PackedRow<'a> {
    pub(super) bits: Bits,
    /// The row's words, little endian.
    pub(super) bytes: &'a [u8],
    /// One a block, zeros up to a whole tile; of mid-rise rows half the stored scale, see [`Bits::multiplier`].
    pub(super) scales: &'a [f32],
    /// One a block where the scheme has them, as long as `scales`; else empty.
    pub(super) zeros: &'a [i32],
}

impl PackedRow<'_> {
    /// The zero point of block `b`; of mid-rise rows that of the doubled integers.
    #[inline(always)]
    pub(super) fn zero(&self, b: usize) -> i32 {
        if self.zeros.is_empty() { self.bits.integer_zero() } else { self.zeros[b] }
    }
}

/// Float activations, (T, stride), padded with zeros to whole blocks. For int4 rows each block holds its even
/// elements, then its odd ones: the order in which nibbles unpack.
#[derive(Clone, Copy)]
pub(super) struct Floats<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Floats<'a> {
    /// From token `t` on.
    pub(super) fn from(self, t: usize) -> Self {
        Self { values: &self.values[t * self.stride..], ..self }
    }
}

/// Int8 activations in tiles. A tile's 128 values are two halves of 64, a half having 16 of each of its four blocks:
/// for int4 rows the even elements and the odd ones, for int8 rows the first 16 and the last, for int2 and int3 rows each
/// fourth from 0 on and from 1 on, then from 2 on and from 3 on. Lane `n` gets the products of places `4n..4n+4` of both
/// halves.
#[derive(Clone, Copy)]
pub(super) struct Ints<'a> {
    /// (T, tiles, 128).
    pub(super) values: &'a [i8],
    /// (T, tiles, 16) sum of the lane's eight values: what its zero point is multiplied with.
    pub(super) sums: &'a [i32],
    /// (T, tiles, 16) the lane's block's scale.
    pub(super) scales: &'a [f32],
    pub(super) tiles: usize,
}

impl<'a> Ints<'a> {
    /// From token `t` on.
    pub(super) fn from(self, t: usize) -> Self {
        let lanes = t * self.tiles * LANES;
        Self {
            values: &self.values[t * self.tiles * TILE_WEIGHTS..],
            sums: &self.sums[lanes..],
            scales: &self.scales[lanes..],
            tiles: self.tiles,
        }
    }

    /// Whether the arrays hold `tokens` whole tokens: what kernels that read by pointer rely on.
    pub(super) fn holds(&self, tokens: usize) -> bool {
        let tiles = tokens * self.tiles;
        self.values.len() >= tiles * TILE_WEIGHTS
            && self.sums.len() >= tiles * LANES
            && self.scales.len() >= tiles * LANES
    }
}

/// `N` bytes of a row from `start`, zeros past its end.
#[inline(always)]
pub(super) fn bytes_at<const N: usize>(row: &[u8], start: usize) -> [u8; N] {
    match row.get(start..start + N) {
        Some(whole) => std::array::from_fn(|i| whole[i]),
        None => padded(row, start),
    }
}

/// What is left of the row, with zeros: the last piece of rows of odd widths.
#[cold]
#[inline(never)]
fn padded<const N: usize>(row: &[u8], start: usize) -> [u8; N] {
    let rest = row.get(start..).unwrap_or_default();
    std::array::from_fn(|i| rest.get(i).copied().unwrap_or(0))
}

/// Gives `load` a pointer to piece `i` of `N` bytes of the row, padded with zeros past its end.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn with_bytes<const N: usize, R>(row: &[u8], i: usize, load: impl Fn(*const u8) -> R) -> R {
    match row.get(i * N..(i + 1) * N) {
        Some(bytes) => load(bytes.as_ptr()),
        None => load(padded::<N>(row, i * N).as_ptr()),
    }
}

/// The sum of the lanes, always in this order.
#[inline(always)]
pub(super) fn fold(lanes: &[f32; LANES]) -> f32 {
    let mut sum = *lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sum[i] += sum[i + half];
        }
        half /= 2;
    }
    sum[0]
}
