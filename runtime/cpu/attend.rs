//! Causal grouped-query attention over the KV cache, a job for each token and KV head.

use super::cache::Layer;
use super::dot::Kernels;
use super::threads::Workers;
use crate::arch::ModelShape;

/// Positions whose keys or values are looked at together: they stay in the first-level cache for all query heads.
const PIECE: usize = 64;

/// `attended[t, h] = Σ_s softmax_s(q[t, h] · k[s] / √D) v[s]` over positions `s <= first + t`.
///
/// `query` and `attended` are (T, H * D), the query already rotated, the cache already holding the T tokens.
pub(super) fn attend(
    kernels: &Kernels,
    workers: &Workers,
    shape: &ModelShape,
    layer: &Layer,
    first: usize,
    query: &[f32],
    attended: &mut [f32],
) {
    // The query heads of one KV head lie side by side, in the query as in the result.
    let width = (shape.heads / shape.kv_heads.max(1) * shape.head_dim).max(1);
    let jobs: Vec<_> = query.chunks_exact(width).zip(attended.chunks_exact_mut(width)).enumerate().collect();
    let products = query.len() / shape.head_dim.max(1) * 2 * (first + 1) * shape.head_dim;
    let pieces = workers.pieces(products, jobs.len());
    let mut jobs = jobs.into_iter();
    let per_piece = jobs.len().div_ceil(pieces).max(1);
    let mut batches = Vec::with_capacity(pieces);
    loop {
        let batch: Vec<_> = jobs.by_ref().take(per_piece).collect();
        if batch.is_empty() {
            break;
        }
        batches.push(batch);
    }
    workers.each(batches, |batch| {
        let mut scratch = Scratch::default();
        for (i, (query, out)) in batch {
            let (token, head) = (i / shape.kv_heads, i % shape.kv_heads);
            one_head(kernels, shape.head_dim, layer, head, first + token + 1, query, out, &mut scratch);
        }
    });
}

/// Memory of one job.
#[derive(Default)]
struct Scratch {
    /// (query heads of the group, S).
    scores: Vec<f32>,
    lines: Vec<f32>,
}

/// The query heads of one KV head at one token that sees `positions` positions.
#[allow(clippy::too_many_arguments)]
fn one_head(
    kernels: &Kernels,
    head_dim: usize,
    layer: &Layer,
    head: usize,
    positions: usize,
    query: &[f32],
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let Scratch { scores, lines } = scratch;
    scores.resize(query.len() / head_dim * positions, 0.0);
    let pieces = (0..positions).step_by(PIECE).map(|s| (s, PIECE.min(positions - s)));
    for (start, count) in pieces.clone() {
        let keys = layer.keys(head, start, count, lines);
        for (q, scores) in query.chunks_exact(head_dim).zip(scores.chunks_exact_mut(positions)) {
            (kernels.scores)(q, keys, &mut scores[start..start + count]);
        }
    }
    let scale = 1.0 / (head_dim as f32).sqrt();
    scores.chunks_exact_mut(positions).for_each(|scores| softmax(scores, scale));
    out.fill(0.0);
    for (start, count) in pieces {
        let values = layer.values(head, start, count, lines);
        for (out, weights) in out.chunks_exact_mut(head_dim).zip(scores.chunks_exact(positions)) {
            (kernels.mix)(&weights[start..start + count], values, out);
        }
    }
}

/// Scores, times `scale`, to weights that add up to one.
fn softmax(scores: &mut [f32], scale: f32) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0f64;
    for score in scores.iter_mut() {
        *score = ((*score - largest) * scale).exp();
        sum += f64::from(*score);
    }
    let factor = (1.0 / sum) as f32;
    scores.iter_mut().for_each(|score| *score *= factor);
}
