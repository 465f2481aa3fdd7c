//! The kernels in plain Rust: what the other instruction sets are tested against.

use half::{bf16, f16};

use super::products;
use super::{BLOCK, Floats, Ints, Kernels, LANES, PackedRow, Row, TILE, TILE_WEIGHTS, bytes_at, fold};
use crate::quant::Bits;

pub(super) const KERNELS: Kernels = Kernels { float, int, scores: products::scores, mix: products::mix };

/// Tokens that share one unpacking of the weights.
const TOKENS: usize = 4;

/// `out[t] = Σ_k w[k] x[t][k]`.
fn float(row: &Row<'_>, x: Floats<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(TOKENS).enumerate() {
        let x = x.from(i * TOKENS);
        let mut sums = [[0.0f32; BLOCK]; TOKENS];
        for b in 0..x.stride / BLOCK {
            let w = unpack(row, b);
            for (t, sums) in sums[..out.len()].iter_mut().enumerate() {
                let x = &x.values[t * x.stride + b * BLOCK..][..BLOCK];
                for ((sum, w), x) in sums.iter_mut().zip(&w).zip(x) {
                    *sum += w * x;
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            *out = fold(&std::array::from_fn(|i| sums[i] + sums[i + LANES]));
        }
    }
}

/// Block `b` of a row as floats, int4 in the order of [`Floats`].
fn unpack(row: &Row<'_>, b: usize) -> [f32; BLOCK] {
    match row {
        Row::F32(bytes) => {
            let block: [u8; 4 * BLOCK] = bytes_at(bytes, b * 4 * BLOCK);
            std::array::from_fn(|i| f32::from_le_bytes(std::array::from_fn(|j| block[4 * i + j])))
        }
        Row::F16(bytes) => {
            let block: [u8; 2 * BLOCK] = bytes_at(bytes, b * 2 * BLOCK);
            std::array::from_fn(|i| f16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32())
        }
        Row::BF16(bytes) => {
            let block: [u8; 2 * BLOCK] = bytes_at(bytes, b * 2 * BLOCK);
            std::array::from_fn(|i| bf16::from_le_bytes([block[2 * i], block[2 * i + 1]]).to_f32())
        }
        Row::Packed(packed) => {
            let (scale, zero) = (packed.scales[b], packed.zero(b));
            let weight = |q: u8| (i32::from(q) - zero) as f32 * scale;
            match packed.bits {
                Bits::Int2 => {
                    let block: [u8; BLOCK / 4] = bytes_at(packed.bytes, b * BLOCK / 4);
                    std::array::from_fn(|k| weight(2 * crumb(&block, k / 4, k % 4)))
                }
                Bits::Int3 => {
                    let block: [u8; 3 * BLOCK / 8] = bytes_at(packed.bytes, b * 3 * BLOCK / 8);
                    std::array::from_fn(|k| weight(2 * three(&block, k / 4, k % 4)))
                }
                Bits::Int4 => {
                    let block: [u8; BLOCK / 2] = bytes_at(packed.bytes, b * BLOCK / 2);
                    std::array::from_fn(|i| {
                        weight(if i < BLOCK / 2 { block[i] & 15 } else { block[i - BLOCK / 2] >> 4 })
                    })
                }
                Bits::Int8 => {
                    let block: [u8; BLOCK] = bytes_at(packed.bytes, b * BLOCK);
                    std::array::from_fn(|i| weight(block[i]))
                }
            }
        }
    }
}

/// `out[t] = Σ_blocks (s_w s_x) · (Σ q_w q_x − zero Σ q_x)`, lane by lane.
fn int(row: &PackedRow<'_>, x: Ints<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(TOKENS).enumerate() {
        let x = x.from(i * TOKENS);
        let mut sums = [[0.0f32; LANES]; TOKENS];
        for tile in 0..x.tiles {
            let halves = halves(row, tile);
            for (t, sums) in sums[..out.len()].iter_mut().enumerate() {
                let at = t * x.tiles + tile;
                let values = &x.values[at * TILE_WEIGHTS..][..TILE_WEIGHTS];
                for (n, sum) in sums.iter_mut().enumerate() {
                    let lane = at * LANES + n;
                    let block = tile * TILE + n / TILE;
                    let mut dot = 0;
                    for i in 4 * n..4 * n + 4 {
                        dot += i32::from(halves[0][i]) * i32::from(values[i]);
                        dot += i32::from(halves[1][i]) * i32::from(values[TILE_WEIGHTS / 2 + i]);
                    }
                    dot -= row.zero(block) * x.sums[lane];
                    *sum += (row.scales[block] * x.scales[lane]) * dot as f32;
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(&sums) {
            *out = fold(sums);
        }
    }
}

/// Two bits of an int2 block: those of weight `4i + s`.
#[inline(always)]
fn crumb(block: &[u8], i: usize, s: usize) -> u8 {
    (block[i] >> (2 * s)) & 3
}

/// Three bits of an int3 block.
#[inline(always)]
fn three(block: &[u8], i: usize, s: usize) -> u8 {
    let high = block[BLOCK / 4 + i % 4] >> (i / 4 * 4 + s);
    crumb(block, i, s) | (high & 1) << 2
}

/// The stored integers of a tile in the order of [`Ints`], doubled where mid-rise.
fn halves(row: &PackedRow<'_>, tile: usize) -> [[u8; TILE_WEIGHTS / 2]; 2] {
    match row.bits {
        Bits::Int2 => {
            let bytes: [u8; TILE_WEIGHTS / 4] = bytes_at(row.bytes, tile * TILE_WEIGHTS / 4);
            fourths(|b, i| (bytes[b * BLOCK / 4 + i], 0))
        }
        Bits::Int3 => {
            let bytes: [u8; 3 * TILE_WEIGHTS / 8] = bytes_at(row.bytes, tile * 3 * TILE_WEIGHTS / 8);
            fourths(|b, i| {
                let block = b * 3 * BLOCK / 8;
                (bytes[block + i], bytes[block + BLOCK / 4 + i % 4] >> (i / 4 * 4))
            })
        }
        Bits::Int4 => {
            let bytes: [u8; TILE_WEIGHTS / 2] = bytes_at(row.bytes, tile * TILE_WEIGHTS / 2);
            [bytes.map(|b| b & 15), bytes.map(|b| b >> 4)]
        }
        Bits::Int8 => {
            let bytes: [u8; TILE_WEIGHTS] = bytes_at(row.bytes, tile * TILE_WEIGHTS);
            [0, 16].map(|half| std::array::from_fn(|i| bytes[i / 16 * BLOCK + half + i % 16]))
        }
    }
}

/// Doubled integers of a tile of mid-rise weights. `parts` gives byte `i` of block `b`, which has the low bits of weights
/// `4i..4i+4`, and a byte with their high bits lowest. Weight `4i + s` is place `i` or `8 + i` of its block's 16 in half
/// `s / 2`.
#[inline(always)]
fn fourths(parts: impl Fn(usize, usize) -> (u8, u8)) -> [[u8; TILE_WEIGHTS / 2]; 2] {
    let mut halves = [[0; TILE_WEIGHTS / 2]; 2];
    for b in 0..TILE {
        for i in 0..BLOCK / 4 {
            let ((low, high), at) = (parts(b, i), b * BLOCK / 2 + i);
            halves[0][at] = (low << 1) & 6 | (high << 3) & 8;
            halves[0][at + 8] = (low >> 1) & 6 | (high << 2) & 8;
            halves[1][at] = (low >> 3) & 6 | (high << 1) & 8;
            halves[1][at + 8] = (low >> 5) & 6 | high & 8;
        }
    }
    halves
}
