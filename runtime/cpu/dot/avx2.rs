//! AVX2 with FMA and F16C: bytes are multiplied in pairs whose 16-bit sums cannot saturate.

use std::arch::x86_64::*;

use super::{
    BLOCK, Floats, Ints, Kernels, LANES, PackedRow, Row, TILE, TILE_WEIGHTS, fold, products, with_bytes,
};
use crate::quant::Bits;

/// Tokens that share one unpacking of the weights: float sums take four registers each.
const FLOAT_TOKENS: usize = 2;
/// The same for integers: two registers each.
const INT_TOKENS: usize = 4;

/// The kernels, where the machine has every instruction that they use.
pub(super) fn kernels() -> Option<Kernels> {
    let all = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    // SAFETY (all four): the features were found just above, and this is the only way to the functions.
    all.then_some(Kernels {
        float: |row, x, out| unsafe { float(row, x, out) },
        int: |row, x, out| unsafe { int(row, x, out) },
        scores: |q, keys, out| unsafe { scores(q, keys, out) },
        mix: |weights, values, out| unsafe { mix(weights, values, out) },
    })
}

#[target_feature(enable = "avx2")]
fn scores(q: &[f32], keys: &[f32], out: &mut [f32]) {
    products::scores(q, keys, out);
}

#[target_feature(enable = "avx2")]
fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) {
    products::mix(weights, values, out);
}

/// `out[t] = Σ_k w[k] x[t][k]`.
#[target_feature(enable = "avx2,fma,f16c")]
fn float(row: &Row<'_>, x: Floats<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(FLOAT_TOKENS).enumerate() {
        let x = x.from(i * FLOAT_TOKENS);
        match out {
            [_] => float_tokens::<1>(row, x, out),
            _ => float_tokens::<FLOAT_TOKENS>(row, x, out),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn float_tokens<const T: usize>(row: &Row<'_>, x: Floats<'_>, out: &mut [f32]) {
    // Written out where an array's `map` would do: its closures are compiled without these instructions.
    match row {
        // SAFETY: 128 bytes are readable.
        Row::F32(bytes) => accumulate::<T>(x, out, |b| {
            with_bytes::<{ 4 * BLOCK }, _>(bytes, b, |p| unsafe {
                let at = |i: usize| p.add(32 * i).cast();
                [
                    _mm256_loadu_ps(at(0)),
                    _mm256_loadu_ps(at(1)),
                    _mm256_loadu_ps(at(2)),
                    _mm256_loadu_ps(at(3)),
                ]
            })
        }),
        // SAFETY: 64 bytes are readable.
        Row::F16(bytes) => accumulate::<T>(x, out, |b| {
            with_bytes::<{ 2 * BLOCK }, _>(bytes, b, |p| unsafe {
                [f16_to_f32(p), f16_to_f32(p.add(16)), f16_to_f32(p.add(32)), f16_to_f32(p.add(48))]
            })
        }),
        // SAFETY: 64 bytes are readable.
        Row::BF16(bytes) => accumulate::<T>(x, out, |b| {
            with_bytes::<{ 2 * BLOCK }, _>(bytes, b, |p| unsafe {
                [bf16_to_f32(p), bf16_to_f32(p.add(16)), bf16_to_f32(p.add(32)), bf16_to_f32(p.add(48))]
            })
        }),
        Row::Packed(row) if row.bits == Bits::Int4 => accumulate::<T>(x, out, |b| {
            let (zero, scale) = (_mm256_set1_epi32(row.zero(b)), _mm256_set1_ps(row.scales[b]));
            with_bytes::<{ BLOCK / 2 }, _>(row.bytes, b, |p| {
                // SAFETY: 16 bytes are readable.
                let (a, b) = unsafe { (bytes_to_i32(p), bytes_to_i32(p.add(8))) };
                let low = _mm256_set1_epi32(15);
                [
                    weight(_mm256_and_si256(a, low), zero, scale),
                    weight(_mm256_and_si256(b, low), zero, scale),
                    weight(_mm256_srli_epi32::<4>(a), zero, scale),
                    weight(_mm256_srli_epi32::<4>(b), zero, scale),
                ]
            })
        }),
        Row::Packed(row) if row.bits.is_mid_rise() => mid_rise::<T>(row, x, out),
        Row::Packed(row) => accumulate::<T>(x, out, |b| {
            let (zero, scale) = (_mm256_set1_epi32(row.zero(b)), _mm256_set1_ps(row.scales[b]));
            // SAFETY: 32 bytes are readable.
            with_bytes::<BLOCK, _>(row.bytes, b, |p| unsafe {
                [
                    weight(bytes_to_i32(p), zero, scale),
                    weight(bytes_to_i32(p.add(8)), zero, scale),
                    weight(bytes_to_i32(p.add(16)), zero, scale),
                    weight(bytes_to_i32(p.add(24)), zero, scale),
                ]
            })
        }),
    }
}

/// Int2 and int3 rows: a word meets each lane, whose shift brings its weight's bits down, and a permutation turns them
/// into what they mean in this block. It reads three bits an index; int2's meanings repeat, whatever the third one is.
#[target_feature(enable = "avx2,fma,f16c")]
fn mid_rise<const T: usize>(row: &PackedRow<'_>, x: Floats<'_>, out: &mut [f32]) {
    let a = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    let b = _mm256_setr_epi32(16, 18, 20, 22, 24, 26, 28, 30);
    if row.bits == Bits::Int2 {
        let levels = _mm256_setr_ps(-3.0, -1.0, 1.0, 3.0, -3.0, -1.0, 1.0, 3.0);
        return accumulate::<T>(x, out, |block| {
            let meaning = _mm256_mul_ps(levels, _mm256_set1_ps(row.scales[block]));
            with_bytes::<{ BLOCK / 4 }, _>(row.bytes, block, |p| {
                // SAFETY: 8 bytes are readable.
                let [first, second] = unsafe { p.cast::<[i32; 2]>().read_unaligned() };
                let (first, second) = (_mm256_set1_epi32(first), _mm256_set1_epi32(second));
                [
                    _mm256_permutevar8x32_ps(meaning, _mm256_srlv_epi32(first, a)),
                    _mm256_permutevar8x32_ps(meaning, _mm256_srlv_epi32(first, b)),
                    _mm256_permutevar8x32_ps(meaning, _mm256_srlv_epi32(second, a)),
                    _mm256_permutevar8x32_ps(meaning, _mm256_srlv_epi32(second, b)),
                ]
            })
        });
    }
    let levels = _mm256_setr_ps(-7.0, -5.0, -3.0, -1.0, 1.0, 3.0, 5.0, 7.0);
    // Where weights 0..8 have their high bits; 8..16, 16..24 and 24..32 have them 16, 4 and 20 bits further up.
    let places = _mm256_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11);
    accumulate::<T>(x, out, |block| {
        let meaning = _mm256_mul_ps(levels, _mm256_set1_ps(row.scales[block]));
        with_bytes::<{ 3 * BLOCK / 8 }, _>(row.bytes, block, |p| {
            // SAFETY: 12 bytes are readable.
            let [first, second, high] = unsafe { p.cast::<[i32; 3]>().read_unaligned() };
            let (first, second) = (_mm256_set1_epi32(first), _mm256_set1_epi32(second));
            let high = _mm256_srlv_epi32(_mm256_set1_epi32(high), places);
            [
                _mm256_permutevar8x32_ps(meaning, three(_mm256_srlv_epi32(first, a), high)),
                _mm256_permutevar8x32_ps(
                    meaning,
                    three(_mm256_srlv_epi32(first, b), _mm256_srli_epi32::<16>(high)),
                ),
                _mm256_permutevar8x32_ps(
                    meaning,
                    three(_mm256_srlv_epi32(second, a), _mm256_srli_epi32::<4>(high)),
                ),
                _mm256_permutevar8x32_ps(
                    meaning,
                    three(_mm256_srlv_epi32(second, b), _mm256_srli_epi32::<20>(high)),
                ),
            ]
        })
    });
}

/// The lowest two bits of one and the lowest of the other, above them.
#[target_feature(enable = "avx2")]
fn three(low: __m256i, high: __m256i) -> __m256i {
    let high = _mm256_and_si256(high, _mm256_set1_epi32(1));
    _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(3)), _mm256_slli_epi32::<2>(high))
}

/// Eight halves as floats; 16 bytes must be readable.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_to_f32(p: *const u8) -> __m256 {
    // SAFETY: the caller's.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
}

/// Eight bfloat16 as floats; 16 bytes must be readable.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bf16_to_f32(p: *const u8) -> __m256 {
    // SAFETY: the caller's.
    let halves = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(p.cast()) });
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
}

/// Eight bytes as integers; 8 bytes must be readable.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes_to_i32(p: *const u8) -> __m256i {
    // SAFETY: the caller's.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(p.cast()) })
}

/// `(q - zero) * scale`.
#[target_feature(enable = "avx2,fma,f16c")]
fn weight(q: __m256i, zero: __m256i, scale: __m256) -> __m256 {
    _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(q, zero)), scale)
}

/// Multiplies each block's 32 weights with those of `T` tokens, four registers of sums a token.
#[target_feature(enable = "avx2,fma,f16c")]
fn accumulate<const T: usize>(x: Floats<'_>, out: &mut [f32], weights: impl Fn(usize) -> [__m256; 4]) {
    let mut sums = [[_mm256_setzero_ps(); 4]; T];
    let tokens: [&[[f32; BLOCK]]; T] =
        std::array::from_fn(|t| x.values[t * x.stride..(t + 1) * x.stride].as_chunks().0);
    for b in 0..x.stride / BLOCK {
        let w = weights(b);
        for (sums, x) in sums.iter_mut().zip(&tokens) {
            let x = x[b].as_ptr();
            for i in 0..4 {
                // SAFETY: a block has 32 floats.
                let x = unsafe { _mm256_loadu_ps(x.add(8 * i)) };
                sums[i] = _mm256_fmadd_ps(w[i], x, sums[i]);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut lanes = [0.0; LANES];
        // SAFETY: there are 16 lanes.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[0], sums[2]));
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), _mm256_add_ps(sums[1], sums[3]));
        }
        *out = fold(&lanes);
    }
}

/// `out[t] = Σ_blocks (s_w s_x) · (Σ q_w q_x − zero Σ q_x)`, lane by lane.
#[target_feature(enable = "avx2")]
fn int(row: &PackedRow<'_>, x: Ints<'_>, out: &mut [f32]) {
    for (i, out) in out.chunks_mut(INT_TOKENS).enumerate() {
        let x = x.from(i * INT_TOKENS);
        match out {
            [_] => int_tokens::<1>(row, x, out),
            [_, _] => int_tokens::<2>(row, x, out),
            [_, _, _] => int_tokens::<3>(row, x, out),
            _ => int_tokens::<INT_TOKENS>(row, x, out),
        }
    }
}

#[target_feature(enable = "avx2")]
fn int_tokens<const T: usize>(row: &PackedRow<'_>, x: Ints<'_>, out: &mut [f32]) {
    let scales = &row.scales.as_chunks::<TILE>().0[..x.tiles];
    let zeros = row.zeros.as_chunks::<TILE>().0;
    // int8 weights are brought to -128..=127 first, and the zero points with them.
    let shift = if row.bits == Bits::Int8 { row.bits.integer_zero() } else { 0 };
    let symmetric = [row.bits.integer_zero(); TILE];
    assert!(x.holds(T) && (zeros.is_empty() || zeros.len() >= x.tiles));
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    for (tile, scales) in scales.iter().enumerate() {
        let zeros = zeros.get(tile).unwrap_or(&symmetric);
        // Half a tile's lanes, two blocks, at a time.
        for pair in 0..2 {
            let [first, second] = match row.bits {
                Bits::Int2 => int2_halves(row.bytes, 2 * tile + pair),
                Bits::Int3 => int3_halves(row.bytes, 2 * tile + pair),
                Bits::Int4 => int4_halves(row.bytes, 2 * tile + pair),
                Bits::Int8 => int8_halves(row.bytes, 2 * tile + pair),
            };
            let (a, b) = (2 * pair, 2 * pair + 1);
            let scale = _mm256_set_m128(_mm_set1_ps(scales[b]), _mm_set1_ps(scales[a]));
            // In the low 16 bits of a lane, the high ones zero: see the multiplication below.
            let low = |zero: i32| (zero - shift) & 0xffff;
            let zero = _mm256_set_m128i(_mm_set1_epi32(low(zeros[b])), _mm_set1_epi32(low(zeros[a])));
            for (t, sums) in sums.iter_mut().enumerate() {
                let at = t * x.tiles + tile;
                // SAFETY: `holds` says that the arrays hold T tokens of whole tiles.
                let (x_first, x_second, x_sums, x_scales) = unsafe {
                    let place = x.values.as_ptr().add(at * TILE_WEIGHTS + pair * BLOCK);
                    let lane = at * LANES + pair * LANES / 2;
                    (
                        _mm256_loadu_si256(place.cast()),
                        _mm256_loadu_si256(place.add(TILE_WEIGHTS / 2).cast()),
                        _mm256_loadu_si256(x.sums.as_ptr().add(lane).cast()),
                        _mm256_loadu_ps(x.scales.as_ptr().add(lane)),
                    )
                };
                let dot = match row.bits {
                    Bits::Int8 => int8_dot(first, second, x_first, x_second),
                    _ => small_dot(first, second, x_first, x_second),
                };
                // Zero points and lane sums fit 16 bits, in which multiplication is fast; high halves times zero vanish.
                let dot = _mm256_sub_epi32(dot, _mm256_madd_epi16(zero, x_sums));
                let factor = _mm256_mul_ps(scale, x_scales);
                sums[pair] = _mm256_add_ps(sums[pair], _mm256_mul_ps(factor, _mm256_cvtepi32_ps(dot)));
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        let mut lanes = [0.0; LANES];
        // SAFETY: there are 16 lanes.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), sums[1]);
        }
        *out = fold(&lanes);
    }
}

/// Doubled two bits of pair `i` of blocks. Each block's eight bytes stand twice in a half, shifted to their even and odd
/// fourths.
#[target_feature(enable = "avx2")]
fn int2_halves(row: &[u8], i: usize) -> [__m256i; 2] {
    with_bytes::<{ BLOCK / 2 }, _>(row, i, |p| {
        // SAFETY: 16 bytes are readable.
        let bytes = _mm256_castsi128_si256(unsafe { _mm_loadu_si128(p.cast()) });
        fourths(_mm256_permute4x64_epi64::<0b01_01_00_00>(bytes))
    })
}

/// Doubled three bits of pair `i` of blocks: the two low ones as int2, the high bits shifted to the same bytes.
#[target_feature(enable = "avx2")]
fn int3_halves(row: &[u8], i: usize) -> [__m256i; 2] {
    let six = _mm256_setr_epi32(-1, -1, -1, -1, -1, -1, 0, 0);
    let low = _mm256_setr_epi32(0, 1, 0, 1, 3, 4, 3, 4);
    let high = _mm256_setr_epi32(2, 2, 2, 2, 5, 5, 5, 5);
    let one = _mm256_set1_epi8(1);
    with_bytes::<{ 3 * BLOCK / 4 }, _>(row, i, |p| {
        // SAFETY: 24 bytes are readable, and no more are read.
        let bytes = unsafe { _mm256_maskload_epi32(p.cast(), six) };
        let [first, second] = fourths(_mm256_permutevar8x32_epi32(bytes, low));
        let high = _mm256_permutevar8x32_epi32(bytes, high);
        let first_high = _mm256_srlv_epi32(high, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
        let second_high = _mm256_srlv_epi32(high, _mm256_setr_epi32(2, 6, 3, 7, 2, 6, 3, 7));
        let first_high = _mm256_slli_epi32::<3>(_mm256_and_si256(first_high, one));
        let second_high = _mm256_slli_epi32::<3>(_mm256_and_si256(second_high, one));
        [_mm256_or_si256(first, first_high), _mm256_or_si256(second, second_high)]
    })
}

/// Each byte's first and second, then third and fourth two bits, doubled.
#[target_feature(enable = "avx2")]
fn fourths(twice: __m256i) -> [__m256i; 2] {
    let mask = _mm256_set1_epi8(6);
    let first = _mm256_srlv_epi64(_mm256_slli_epi64::<1>(twice), _mm256_setr_epi64x(0, 2, 0, 2));
    let second = _mm256_srlv_epi64(twice, _mm256_setr_epi64x(3, 5, 3, 5));
    [_mm256_and_si256(first, mask), _mm256_and_si256(second, mask)]
}

/// Low and high nibbles of pair `i` of blocks.
#[target_feature(enable = "avx2")]
fn int4_halves(row: &[u8], i: usize) -> [__m256i; 2] {
    let low = _mm256_set1_epi8(15);
    with_bytes::<BLOCK, _>(row, i, |p| {
        // SAFETY: 32 bytes are readable.
        let bytes = unsafe { _mm256_loadu_si256(p.cast()) };
        [_mm256_and_si256(bytes, low), _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), low)]
    })
}

/// The first and the last 16 bytes of each block of pair `i`, as -128..=127.
#[target_feature(enable = "avx2")]
fn int8_halves(row: &[u8], i: usize) -> [__m256i; 2] {
    let sign = _mm256_set1_epi8(-128);
    with_bytes::<{ 2 * BLOCK }, _>(row, i, |p| {
        // SAFETY: 64 bytes are readable.
        let (a, b) = unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) };
        let (a, b) = (_mm256_xor_si256(a, sign), _mm256_xor_si256(b, sign));
        [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
    })
}

/// Sums by fours of at most four bits times bytes; four products in 16 bits: 4 * 15 * 127 = 7620.
#[target_feature(enable = "avx2")]
fn small_dot(first: __m256i, second: __m256i, x_first: __m256i, x_second: __m256i) -> __m256i {
    let pairs =
        _mm256_add_epi16(_mm256_maddubs_epi16(first, x_first), _mm256_maddubs_epi16(second, x_second));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Sums by fours of bytes times bytes; the weight's sign goes to the activation, two products in 16 bits:
/// 2 * 128 * 127 = 32512.
#[target_feature(enable = "avx2")]
fn int8_dot(first: __m256i, second: __m256i, x_first: __m256i, x_second: __m256i) -> __m256i {
    let a = _mm256_maddubs_epi16(_mm256_abs_epi8(first), _mm256_sign_epi8(x_first, first));
    let b = _mm256_maddubs_epi16(_mm256_abs_epi8(second), _mm256_sign_epi8(x_second, second));
    let one = _mm256_set1_epi16(1);
    _mm256_add_epi32(_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one))
}
