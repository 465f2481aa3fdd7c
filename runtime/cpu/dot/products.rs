//! Attention's products over float32 keys and values. Plain loops that each instruction set compiles for itself; nothing
//! is fused and lanes are fixed, so that all return the same bits.

use super::{LANES, fold};

/// `scores[s] = q · keys[s]`, keys (S, D).
#[inline(always)]
pub(super) fn scores(q: &[f32], keys: &[f32], scores: &mut [f32]) {
    for (score, key) in scores.iter_mut().zip(keys.chunks_exact(q.len().max(1))) {
        let mut lanes = [0.0; LANES];
        let (q_chunks, q_rest) = q.as_chunks::<LANES>();
        let (k_chunks, k_rest) = key.as_chunks::<LANES>();
        for (q, k) in q_chunks.iter().zip(k_chunks) {
            for i in 0..LANES {
                lanes[i] += q[i] * k[i];
            }
        }
        for ((lane, q), k) in lanes.iter_mut().zip(q_rest).zip(k_rest) {
            *lane += q * k;
        }
        *score = fold(&lanes);
    }
}

/// `out += Σ_s weights[s] values[s]`, values (S, D), one position after the other.
#[inline(always)]
pub(super) fn mix(weights: &[f32], values: &[f32], out: &mut [f32]) {
    let width = out.len().max(1);
    for (weight, value) in weights.iter().zip(values.chunks_exact(width)) {
        for (out, v) in out.iter_mut().zip(value) {
            *out += weight * v;
        }
    }
}
