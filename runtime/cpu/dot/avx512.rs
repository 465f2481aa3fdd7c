//! AVX-512 with VNNI: 64 bytes of weights an instruction, unsigned weights times signed activations summed by fours.

use std::arch::x86_64::*;

use super::{
    BLOCK, Floats, Ints, Kernels, LANES, PackedRow, Row, TILE, TILE_WEIGHTS, fold, products, with_bytes,
};
use crate::quant::Bits;

/// Tokens that share one unpacking of the weights.
const TOKENS: usize = 4;

/// The kernels, where the machine has every instruction that they use.
pub(super) fn kernels() -> Option<Kernels> {
    let all = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("f16c");
    // SAFETY (all four): the features were found just above, and this is the only way to the functions.
    all.then_some(Kernels {
        float: |row, x, out| unsafe { float(row, x, out) },
        int: |row, x, out| unsafe { int(row, x, out) },
        scores: |q, keys, out| unsafe { scores(q, keys, out) },
        mix: |weights, values, out| unsafe { mix(weights, values, out) },
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn scores(q: &[f32], keys: &[f32], out: &mut [f32]) {
    products::scores(q, keys, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) {
    products::mix(weights, values, out);
}

/// `out[t] = Σ_k w[k] x[t][k]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn float(row: &Row<'_>, x: Floats<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(TOKENS).enumerate() {
        let x = x.from(i * TOKENS);
        match out {
            [_] => float_tokens::<1>(row, x, out),
            [_, _] => float_tokens::<2>(row, x, out),
            [_, _, _] => float_tokens::<3>(row, x, out),
            _ => float_tokens::<TOKENS>(row, x, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn float_tokens<const T: usize>(row: &Row<'_>, x: Floats<'_>, out: &mut [f32]) {
    // Written out where an array's `map` would do: its closures are compiled without these instructions.
    match row {
        Row::F32(bytes) => accumulate::<T>(x, out, |b| {
            with_bytes::<{ 4 * BLOCK }, _>(bytes, b, |p| {
                // SAFETY: 128 bytes are readable.
                unsafe { [_mm512_loadu_ps(p.cast()), _mm512_loadu_ps(p.add(64).cast())] }
            })
        }),
        Row::F16(bytes) => accumulate::<T>(x, out, |b| {
            with_bytes::<{ 2 * BLOCK }, _>(bytes, b, |p| {
                // SAFETY: 64 bytes are readable.
                let (a, b) = unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) };
                [_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)]
            })
        }),
        Row::BF16(bytes) => accumulate::<T>(x, out, |b| {
            with_bytes::<{ 2 * BLOCK }, _>(bytes, b, |p| {
                // SAFETY: 64 bytes are readable.
                let (a, b) = unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) };
                [bf16_to_f32(a), bf16_to_f32(b)]
            })
        }),
        Row::Packed(row) if row.bits == Bits::Int4 => {
            let stored = _mm512_setr_ps(
                0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
            );
            accumulate::<T>(x, out, |b| {
                // All sixteen weights that a nibble can mean in this block; the permutation reads low nibbles only.
                let zero = _mm512_set1_ps(row.zero(b) as f32);
                let meaning = _mm512_mul_ps(_mm512_sub_ps(stored, zero), _mm512_set1_ps(row.scales[b]));
                with_bytes::<{ BLOCK / 2 }, _>(row.bytes, b, |p| {
                    // SAFETY: 16 bytes are readable.
                    let bytes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(p.cast()) });
                    let high = _mm512_srli_epi32::<4>(bytes);
                    [_mm512_permutexvar_ps(bytes, meaning), _mm512_permutexvar_ps(high, meaning)]
                })
            });
        }
        Row::Packed(row) if row.bits.is_mid_rise() => mid_rise::<T>(row, x, out),
        Row::Packed(row) => accumulate::<T>(x, out, |b| {
            let (zero, scale) = (_mm512_set1_epi32(row.zero(b)), _mm512_set1_ps(row.scales[b]));
            with_bytes::<BLOCK, _>(row.bytes, b, |p| {
                // SAFETY: 32 bytes are readable.
                let (a, b) = unsafe { (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(16).cast())) };
                [int8_to_f32(a, zero, scale), int8_to_f32(b, zero, scale)]
            })
        }),
    }
}

/// Int2 and int3 rows: a word meets each lane, whose shift brings its weight's bits down, and a permutation turns them
/// into what they mean in this block. It reads four bits an index; the meanings repeat, whatever the upper ones are.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn mid_rise<const T: usize>(row: &PackedRow<'_>, x: Floats<'_>, out: &mut [f32]) {
    let shifts = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let levels = |mask: i32| {
        let stored = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let doubled = _mm512_slli_epi32::<1>(_mm512_and_si512(stored, _mm512_set1_epi32(mask)));
        _mm512_cvtepi32_ps(_mm512_sub_epi32(doubled, _mm512_set1_epi32(row.bits.integer_zero())))
    };
    if row.bits == Bits::Int2 {
        let levels = levels(3);
        return accumulate::<T>(x, out, |b| {
            let meaning = _mm512_mul_ps(levels, _mm512_set1_ps(row.scales[b]));
            with_bytes::<{ BLOCK / 4 }, _>(row.bytes, b, |p| {
                // SAFETY: 8 bytes are readable.
                let [first, second] = unsafe { p.cast::<[i32; 2]>().read_unaligned() };
                let first = _mm512_srlv_epi32(_mm512_set1_epi32(first), shifts);
                let second = _mm512_srlv_epi32(_mm512_set1_epi32(second), shifts);
                [_mm512_permutexvar_ps(first, meaning), _mm512_permutexvar_ps(second, meaning)]
            })
        });
    }
    let levels = levels(7);
    let low = _mm512_set1_epi32(3);
    // Rotations that bring the high bits of weights 0..16 and 16..32 to bit 2.
    let one = _mm512_setr_epi32(30, 31, 0, 1, 6, 7, 8, 9, 14, 15, 16, 17, 22, 23, 24, 25);
    let two = _mm512_add_epi32(one, _mm512_set1_epi32(4));
    accumulate::<T>(x, out, |b| {
        let meaning = _mm512_mul_ps(levels, _mm512_set1_ps(row.scales[b]));
        with_bytes::<{ 3 * BLOCK / 8 }, _>(row.bytes, b, |p| {
            // SAFETY: 12 bytes are readable.
            let [first, second, high] = unsafe { p.cast::<[i32; 3]>().read_unaligned() };
            let (first, second) = (_mm512_set1_epi32(first), _mm512_set1_epi32(second));
            let high = _mm512_set1_epi32(high);
            // Two bits of the first, the others of the second.
            let first = select(low, _mm512_srlv_epi32(first, shifts), _mm512_rorv_epi32(high, one));
            let second = select(low, _mm512_srlv_epi32(second, shifts), _mm512_rorv_epi32(high, two));
            [_mm512_permutexvar_ps(first, meaning), _mm512_permutexvar_ps(second, meaning)]
        })
    });
}

/// Bits of `a` where the mask has ones, of `b` elsewhere.
#[target_feature(enable = "avx512f")]
fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xca>(mask, a, b)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn bf16_to_f32(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn int8_to_f32(q: __m128i, zero: __m512i, scale: __m512) -> __m512 {
    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(q), zero)), scale)
}

/// Multiplies each block's 32 weights with those of `T` tokens, two registers of sums a token.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn accumulate<const T: usize>(x: Floats<'_>, out: &mut [f32], weights: impl Fn(usize) -> [__m512; 2]) {
    let mut sums = [[_mm512_setzero_ps(); 2]; T];
    let tokens: [&[[f32; BLOCK]]; T] =
        std::array::from_fn(|t| x.values[t * x.stride..(t + 1) * x.stride].as_chunks().0);
    for b in 0..x.stride / BLOCK {
        let w = weights(b);
        for (sums, x) in sums.iter_mut().zip(&tokens) {
            let x = x[b].as_ptr();
            // SAFETY: a block has 32 floats.
            let x = unsafe { [_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(BLOCK / 2))] };
            sums[0] = _mm512_fmadd_ps(w[0], x[0], sums[0]);
            sums[1] = _mm512_fmadd_ps(w[1], x[1], sums[1]);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1]));
    }
}

/// `out[t] = Σ_blocks (s_w s_x) · (Σ q_w q_x − zero Σ q_x)`, lane by lane.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn int_tokens<const T: usize>(row: &PackedRow<'_>, x: Ints<'_>, out: &mut [f32]) {
    let scales = &row.scales.as_chunks::<TILE>().0[..x.tiles];
    let zeros = row.zeros.as_chunks::<TILE>().0;
    let symmetric = _mm512_set1_epi32(row.bits.integer_zero());
    assert!(x.holds(T) && (zeros.is_empty() || zeros.len() >= x.tiles));
    // A tile's four values to the four lanes of each block.
    let spread = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    let mut sums = [_mm512_setzero_ps(); T];
    for (tile, scales) in scales.iter().enumerate() {
        let halves = match row.bits {
            Bits::Int2 => int2_halves(row.bytes, tile),
            Bits::Int3 => int3_halves(row.bytes, tile),
            Bits::Int4 => int4_halves(row.bytes, tile),
            Bits::Int8 => int8_halves(row.bytes, tile),
        };
        // SAFETY: a tile has four scales and zero points.
        let four = unsafe { _mm_loadu_ps(scales.as_ptr()) };
        let scale = _mm512_permutexvar_ps(spread, _mm512_castps128_ps512(four));
        let zero = match zeros.get(tile) {
            Some(zeros) => {
                let four = unsafe { _mm_loadu_si128(zeros.as_ptr().cast()) };
                _mm512_permutexvar_epi32(spread, _mm512_castsi128_si512(four))
            }
            None => symmetric,
        };
        for (t, sums) in sums.iter_mut().enumerate() {
            let at = t * x.tiles + tile;
            // SAFETY: `holds` says that the arrays hold T tokens of whole tiles.
            let (first, second, values, scales) = unsafe {
                let place = x.values.as_ptr().add(at * TILE_WEIGHTS);
                (
                    _mm512_loadu_si512(place.cast()),
                    _mm512_loadu_si512(place.add(TILE_WEIGHTS / 2).cast()),
                    _mm512_loadu_si512(x.sums.as_ptr().add(at * LANES).cast()),
                    _mm512_loadu_ps(x.scales.as_ptr().add(at * LANES)),
                )
            };
            // Stored integers reach 255 and lane sums 8 * 127: 18 bits, in which a 16-bit multiplication suffices.
            let correction = _mm512_madd_epi16(zero, values);
            let dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), halves[0], first);
            let dot = _mm512_sub_epi32(_mm512_dpbusd_epi32(dot, halves[1], second), correction);
            let factor = _mm512_mul_ps(scale, scales);
            *sums = _mm512_add_ps(*sums, _mm512_mul_ps(factor, _mm512_cvtepi32_ps(dot)));
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut lanes = [0.0; LANES];
        // SAFETY: there are 16 lanes.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
        *out = fold(&lanes);
    }
}

/// Doubled two bits of a tile. Each block's eight bytes stand twice in a half, shifted to their even and odd fourths.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int2_halves(row: &[u8], tile: usize) -> [__m512i; 2] {
    let twice = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    let mask = _mm512_set1_epi8(6);
    with_bytes::<{ TILE_WEIGHTS / 4 }, _>(row, tile, |p| {
        // SAFETY: 32 bytes are readable.
        let bytes = _mm512_castsi256_si512(unsafe { _mm256_loadu_si256(p.cast()) });
        let [first, second] = fourths(_mm512_permutexvar_epi64(twice, bytes));
        [_mm512_and_si512(first, mask), _mm512_and_si512(second, mask)]
    })
}

/// Doubled three bits of a tile: the two low ones as int2, the high bits rotated to the same bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int3_halves(row: &[u8], tile: usize) -> [__m512i; 2] {
    let low = _mm512_setr_epi32(0, 1, 0, 1, 3, 4, 3, 4, 6, 7, 6, 7, 9, 10, 9, 10);
    let high = _mm512_setr_epi32(2, 2, 2, 2, 5, 5, 5, 5, 8, 8, 8, 8, 11, 11, 11, 11);
    let (of_low, of_both) = (_mm512_set1_epi8(6), _mm512_set1_epi8(14));
    // To bit 3: from bit 0, 4, 1 and 5 of each byte, and from 2, 6, 3 and 7.
    let first_high = _mm512_set4_epi32(2, 30, 1, 29);
    let second_high = _mm512_set4_epi32(4, 0, 3, 31);
    with_bytes::<{ 3 * TILE_WEIGHTS / 8 }, _>(row, tile, |p| {
        // SAFETY: 48 bytes are readable, and no more are read.
        let bytes = unsafe { _mm512_maskz_loadu_epi32(0x0fff, p.cast()) };
        let [first, second] = fourths(_mm512_permutexvar_epi32(low, bytes));
        let high = _mm512_permutexvar_epi32(high, bytes);
        let first = select(of_low, first, _mm512_rorv_epi32(high, first_high));
        let second = select(of_low, second, _mm512_rorv_epi32(high, second_high));
        [_mm512_and_si512(first, of_both), _mm512_and_si512(second, of_both)]
    })
}

/// Each byte's first, second, then third, fourth two bits at bits 1 and 2, what is beside them still there.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn fourths(twice: __m512i) -> [__m512i; 2] {
    [
        _mm512_rorv_epi64(twice, _mm512_set4_epi64(1, 63, 1, 63)),
        _mm512_rorv_epi64(twice, _mm512_set4_epi64(5, 3, 5, 3)),
    ]
}

/// Low and high nibbles of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int4_halves(row: &[u8], tile: usize) -> [__m512i; 2] {
    let low = _mm512_set1_epi8(15);
    with_bytes::<{ TILE_WEIGHTS / 2 }, _>(row, tile, |p| {
        // SAFETY: 64 bytes are readable.
        let bytes = unsafe { _mm512_loadu_si512(p.cast()) };
        [_mm512_and_si512(bytes, low), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), low)]
    })
}

/// The first and the last 16 bytes of each block of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn int8_halves(row: &[u8], tile: usize) -> [__m512i; 2] {
    with_bytes::<TILE_WEIGHTS, _>(row, tile, |p| {
        // SAFETY: 128 bytes are readable.
        let (a, b) = unsafe { (_mm512_loadu_si512(p.cast()), _mm512_loadu_si512(p.add(64).cast())) };
        [_mm512_shuffle_i32x4::<0b10_00_10_00>(a, b), _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b)]
    })
}
