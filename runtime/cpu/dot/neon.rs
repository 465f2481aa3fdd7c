//! Arm with dot products: `sdot` sums products of signed bytes by fours, the lanes that the other kernels have too.
//!
//! Float kernels are the portable ones, which the compiler turns into NEON, part of every 64-bit Arm.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::{BLOCK, Ints, Kernels, LANES, PackedRow, TILE, TILE_WEIGHTS, fold, portable, with_bytes};
use crate::quant::Bits;

/// Tokens that share one unpacking of the weights: four registers of sums each.
const TOKENS: usize = 4;

/// The kernels, where the machine has every instruction that they use.
pub(super) fn kernels() -> Option<Kernels> {
    // SAFETY: the feature is found just before, and this is the only way to the function.
    is_aarch64_feature_detected!("dotprod")
        .then_some(Kernels { int: |row, x, out| unsafe { int(row, x, out) }, ..portable::KERNELS })
}

/// `out[t] = Σ_blocks (s_w s_x) · (Σ q_w q_x − zero Σ q_x)`, lane by lane.
#[target_feature(enable = "neon,dotprod")]
fn int(row: &PackedRow<'_>, x: Ints<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(TOKENS).enumerate() {
        let x = x.from(i * TOKENS);
        match out {
            [_] => int_tokens::<1>(row, x, out),
            [_, _] => int_tokens::<2>(row, x, out),
            [_, _, _] => int_tokens::<3>(row, x, out),
            _ => int_tokens::<TOKENS>(row, x, out),
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
fn int_tokens<const T: usize>(row: &PackedRow<'_>, x: Ints<'_>, out: &mut [f32]) {
    // int8 weights are brought to -128..=127 first, and the zero points with them.
    let shift = if row.bits == Bits::Int8 { row.bits.integer_zero() } else { 0 };
    assert!(x.holds(T));
    let mut sums = [[vdupq_n_f32(0.0); TILE]; T];
    for tile in 0..x.tiles {
        for block in 0..TILE {
            let b = tile * TILE + block;
            let [first, second] = match row.bits {
                Bits::Int2 => int2_halves(row.bytes, b),
                Bits::Int3 => int3_halves(row.bytes, b),
                Bits::Int4 => int4_halves(row.bytes, b),
                Bits::Int8 => int8_halves(row.bytes, b),
            };
            let (scale, zero) = (row.scales[b], row.zero(b) - shift);
            for (t, sums) in sums.iter_mut().enumerate() {
                let at = t * x.tiles + tile;
                // SAFETY: `holds` says that the arrays hold T tokens of whole tiles.
                let (x_first, x_second, x_sums, x_scales) = unsafe {
                    let place = x.values.as_ptr().add(at * TILE_WEIGHTS + block * BLOCK / 2);
                    let lane = at * LANES + block * TILE;
                    (
                        vld1q_s8(place),
                        vld1q_s8(place.add(TILE_WEIGHTS / 2)),
                        vld1q_s32(x.sums.as_ptr().add(lane)),
                        vld1q_f32(x.scales.as_ptr().add(lane)),
                    )
                };
                let dot = sdot(sdot(vdupq_n_s32(0), first, x_first), second, x_second);
                let dot = vmlsq_n_s32(dot, x_sums, zero);
                let factor = vmulq_n_f32(x_scales, scale);
                // Two instructions, as the other kernels: a fused one rounds once only.
                sums[block] = vaddq_f32(sums[block], vmulq_f32(factor, vcvtq_f32_s32(dot)));
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut lanes = [0.0; LANES];
        for (lanes, sums) in lanes.as_chunks_mut::<TILE>().0.iter_mut().zip(sums) {
            // SAFETY: there are four lanes.
            unsafe { vst1q_f32(lanes.as_mut_ptr(), sums) };
        }
        *out = fold(&lanes);
    }
}

/// Doubled two bits of block `b`. Its eight bytes stand twice in a half, shifted to their even and odd fourths.
#[target_feature(enable = "neon,dotprod")]
fn int2_halves(row: &[u8], b: usize) -> [int8x16_t; 2] {
    with_bytes::<{ BLOCK / 4 }, _>(row, b, |p| {
        // SAFETY: 8 bytes are readable.
        let [first, second] = fourths(unsafe { vld1_u8(p) });
        [vreinterpretq_s8_u8(first), vreinterpretq_s8_u8(second)]
    })
}

/// Doubled three bits of block `b`: the two low ones as int2, the high bits shifted to the same bytes.
#[target_feature(enable = "neon,dotprod")]
fn int3_halves(row: &[u8], b: usize) -> [int8x16_t; 2] {
    const FIRST: [i8; 16] = [3, 3, 3, 3, -1, -1, -1, -1, 2, 2, 2, 2, -2, -2, -2, -2];
    const SECOND: [i8; 16] = [1, 1, 1, 1, -3, -3, -3, -3, 0, 0, 0, 0, -4, -4, -4, -4];
    with_bytes::<{ 3 * BLOCK / 8 }, _>(row, b, |p| {
        // SAFETY: 12 bytes are readable, and the shifts are 16 bytes.
        let (low, high, by_first, by_second) = unsafe {
            let high = p.add(BLOCK / 4).cast::<u32>().read_unaligned();
            (vld1_u8(p), high, vld1q_s8(FIRST.as_ptr()), vld1q_s8(SECOND.as_ptr()))
        };
        let [first, second] = fourths(low);
        let (high, bit) = (vreinterpretq_u8_u32(vdupq_n_u32(high)), vdupq_n_u8(8));
        let first = vorrq_u8(first, vandq_u8(vshlq_u8(high, by_first), bit));
        let second = vorrq_u8(second, vandq_u8(vshlq_u8(high, by_second), bit));
        [vreinterpretq_s8_u8(first), vreinterpretq_s8_u8(second)]
    })
}

/// Each byte's first and second, then third and fourth two bits, doubled.
#[target_feature(enable = "neon,dotprod")]
fn fourths(bytes: uint8x8_t) -> [uint8x16_t; 2] {
    let (twice, mask) = (vcombine_u8(bytes, bytes), vdupq_n_u8(6));
    let first = vshlq_u8(twice, vcombine_s8(vdup_n_s8(1), vdup_n_s8(-1)));
    let second = vshlq_u8(twice, vcombine_s8(vdup_n_s8(-3), vdup_n_s8(-5)));
    [vandq_u8(first, mask), vandq_u8(second, mask)]
}

/// Low and high nibbles of block `b`.
#[target_feature(enable = "neon,dotprod")]
fn int4_halves(row: &[u8], b: usize) -> [int8x16_t; 2] {
    with_bytes::<{ BLOCK / 2 }, _>(row, b, |p| {
        // SAFETY: 16 bytes are readable.
        let bytes = unsafe { vld1q_u8(p) };
        let (low, high) = (vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes));
        [vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high)]
    })
}

/// The first and the last 16 bytes of block `b`, as -128..=127.
#[target_feature(enable = "neon,dotprod")]
fn int8_halves(row: &[u8], b: usize) -> [int8x16_t; 2] {
    with_bytes::<BLOCK, _>(row, b, |p| {
        // SAFETY: 32 bytes are readable.
        let (first, second) = unsafe { (vld1q_u8(p), vld1q_u8(p.add(BLOCK / 2))) };
        let sign = vdupq_n_u8(128);
        [vreinterpretq_s8_u8(veorq_u8(first, sign)), vreinterpretq_s8_u8(veorq_u8(second, sign))]
    })
}

/// `sums[n] += Σ_i a[4n + i] b[4n + i]`; std's intrinsic for it is not stable.
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers, of a feature that this function demands.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}
