//! The input rows of a projection in every form its kernels want, made once and shared by all linears and rows.

use super::dot::{Floats, Ints, LANES, TILE, TILE_WEIGHTS};
use super::plan::Sizes;
use super::run::reserve;
use crate::error::Result;
use crate::quant::Bits;
use crate::quant::activations::BLOCK;

/// What a kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Floats in order.
    Plain,
    /// Floats, each block's even elements before its odd ones: for int4 rows.
    Halves,
    /// Int8 tiles in the order in which rows of some bits unpack.
    Int(Order),
}

/// How a block's 32 values lie in the two halves of a tile; see [`Ints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The first 16 and the last: for int8 rows.
    Natural,
    /// Even elements and odd ones: for int4 rows.
    EvenOdd,
    /// Each fourth: for int2 and int3 rows.
    Fourths,
}

impl Order {
    /// All, as [`Input`] keeps them.
    const ALL: [Self; 3] = [Self::Natural, Self::EvenOdd, Self::Fourths];

    /// That of rows of these bits.
    pub(super) const fn of(bits: Bits) -> Self {
        match bits {
            Bits::Int8 => Self::Natural,
            Bits::Int4 => Self::EvenOdd,
            Bits::Int2 | Bits::Int3 => Self::Fourths,
        }
    }

    /// The elements at place `i` of a block's 16 in both halves.
    const fn elements(self, i: usize) -> (usize, usize) {
        match self {
            Self::Natural => (i, BLOCK / 2 + i),
            Self::EvenOdd => (2 * i, 2 * i + 1),
            Self::Fourths => (i % 8 * 4 + i / 8, i % 8 * 4 + i / 8 + 2),
        }
    }
}

/// T rows of K values.
#[derive(Default)]
pub(super) struct Input {
    tokens: usize,
    /// K padded to whole blocks.
    stride: usize,
    plain: Vec<f32>,
    halves: Vec<f32>,
    /// In the orders of [`Order::ALL`].
    tiles: [Tiles; 3],
}

impl Input {
    /// Takes `tokens` rows of `cols` values, which `write` puts down one by one, and makes the wanted forms.
    pub(super) fn fill(
        &mut self,
        tokens: usize,
        cols: usize,
        forms: &[Form],
        mut write: impl FnMut(usize, &mut [f32]),
    ) {
        (self.tokens, self.stride) = (tokens, cols.next_multiple_of(BLOCK));
        self.plain.resize(tokens * self.stride, 0.0);
        for (t, row) in self.plain.chunks_mut(self.stride.max(1)).enumerate() {
            let (row, padding) = row.split_at_mut(cols);
            write(t, row);
            padding.fill(0.0);
        }
        if forms.contains(&Form::Halves) {
            self.halves.resize(self.plain.len(), 0.0);
            for (block, out) in self.plain.chunks_exact(BLOCK).zip(self.halves.chunks_exact_mut(BLOCK)) {
                let (even, odd) = out.split_at_mut(BLOCK / 2);
                for ((pair, even), odd) in block.as_chunks::<2>().0.iter().zip(even).zip(odd) {
                    (*even, *odd) = (pair[0], pair[1]);
                }
            }
        }
        for (order, tiles) in Order::ALL.into_iter().zip(&mut self.tiles) {
            if forms.contains(&Form::Int(order)) {
                tiles.fill(order, &self.plain, tokens, self.stride);
            }
        }
    }

    /// T.
    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The float form for int4 rows or for others.
    pub(super) fn floats(&self, halves: bool) -> Floats<'_> {
        Floats { values: if halves { &self.halves } else { &self.plain }, stride: self.stride }
    }

    /// The int8 form in an order.
    pub(super) fn ints(&self, order: Order) -> Ints<'_> {
        let tiles = &self.tiles[order as usize];
        Ints { values: &tiles.values, sums: &tiles.sums, scales: &tiles.scales, tiles: tiles.count }
    }

    /// Makes room for the longest pass.
    pub(super) fn reserve(&mut self, sizes: &Sizes) -> Result<()> {
        reserve(&mut self.plain, sizes.plain)?;
        reserve(&mut self.halves, sizes.halves)?;
        for (tiles, count) in self.tiles.iter_mut().zip(sizes.tiles) {
            reserve(&mut tiles.values, count.saturating_mul(TILE_WEIGHTS))?;
            reserve(&mut tiles.sums, count.saturating_mul(LANES))?;
            reserve(&mut tiles.scales, count.saturating_mul(LANES))?;
        }
        Ok(())
    }

    /// Bytes held.
    pub(super) fn byte_len(&self) -> usize {
        let tiles = |t: &Tiles| t.values.capacity() + 4 * (t.sums.capacity() + t.scales.capacity());
        4 * (self.plain.capacity() + self.halves.capacity()) + self.tiles.iter().map(tiles).sum::<usize>()
    }
}

/// The owned arrays of [`Ints`].
#[derive(Default)]
struct Tiles {
    values: Vec<i8>,
    sums: Vec<i32>,
    scales: Vec<f32>,
    count: usize,
}

impl Tiles {
    fn fill(&mut self, order: Order, plain: &[f32], tokens: usize, stride: usize) {
        self.count = stride.div_ceil(TILE_WEIGHTS);
        let tiles = tokens * self.count;
        self.values.clear();
        self.values.resize(tiles * TILE_WEIGHTS, 0);
        self.sums.clear();
        self.sums.resize(tiles * LANES, 0);
        self.scales.clear();
        self.scales.resize(tiles * LANES, 0.0);
        for (t, row) in plain.chunks_exact(stride.max(1)).enumerate() {
            for (b, block) in row.as_chunks::<BLOCK>().0.iter().enumerate() {
                let (tile, place) = (t * self.count + b / TILE, b % TILE);
                let (q, scale) = quantise(block);
                let values = &mut self.values[tile * TILE_WEIGHTS..][..TILE_WEIGHTS];
                let (first, second) = values.split_at_mut(TILE_WEIGHTS / 2);
                let first = &mut first[place * BLOCK / 2..][..BLOCK / 2];
                let second = &mut second[place * BLOCK / 2..][..BLOCK / 2];
                for (i, (first, second)) in first.iter_mut().zip(second.iter_mut()).enumerate() {
                    let (a, b) = order.elements(i);
                    (*first, *second) = (q[a], q[b]);
                }
                let lane = tile * LANES + place * TILE;
                self.scales[lane..lane + TILE].fill(scale);
                for (n, sum) in self.sums[lane..lane + TILE].iter_mut().enumerate() {
                    let both = first[4 * n..4 * n + 4].iter().chain(&second[4 * n..4 * n + 4]);
                    *sum = both.map(|q| i32::from(*q)).sum();
                }
            }
        }
    }
}

/// One block as [`crate::quant::activations`] defines it, in a form that vectorises.
fn quantise(block: &[f32; BLOCK]) -> ([i8; BLOCK], f32) {
    /// Adding it leaves a number below 2^22 rounded, ties to even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    (block.map(|v| (v * inverse + ROUND).to_bits() as i8), scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::activations::Int8Row;

    #[test]
    fn the_fast_rounding_is_the_defined_one() {
        let mut seed = 7u32;
        for case in 0..200 {
            let block: [f32; BLOCK] = std::array::from_fn(|i| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let v = (seed >> 8) as f32 / (1 << 23) as f32 - 1.0;
                // Ties, zeros and very small blocks among them.
                match case % 4 {
                    0 => v,
                    1 => (v * 10.0).round() / 2.0 * if i == 0 { 0.0 } else { 1.0 },
                    2 => v * 1e-30,
                    _ => 0.0,
                }
            });
            let (q, scale) = quantise(&block);
            let expected = Int8Row::quantise(&block);
            assert_eq!((&q[..], scale), (&expected.values[..], expected.scales[0]), "case {case}");
        }
    }
}
