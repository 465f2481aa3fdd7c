//! Causal grouped-query attention over the KV cache, a job for each token and KV head of all passes.

use super::cache::Layer;
use super::dot::Kernels;
use super::threads::Workers;
use crate::arch::ModelShape;

/// Positions whose keys or values are looked at together: they stay in the first-level cache for all query heads.
const PIECE: usize = 64;

/// The tokens of one pass before attention and after it.
pub(super) struct Queries<'a> {
    /// Holds them already.
    pub(super) layer: &'a Layer,
    /// The position of the first of them.
    pub(super) first: usize,
    /// (T, H * D), rotated.
    pub(super) query: &'a [f32],
    /// (T, H * D).
    pub(super) attended: &'a mut [f32],
}

/// `attended[t, h] = Σ_s softmax_s(q[t, h] · k[s] / √D) v[s]` over positions `s <= first + t`, for each pass over its own
/// cache.
pub(super) fn attend<'a>(
    kernels: &Kernels,
    workers: &Workers,
    shape: &ModelShape,
    passes: impl IntoIterator<Item = Queries<'a>>,
) {
    // The query heads of one KV head lie side by side, in the query as in the result.
    let width = (shape.heads / shape.kv_heads.max(1) * shape.head_dim).max(1);
    let (mut jobs, mut products) = (Vec::new(), 0);
    for Queries { layer, first, query, attended } in passes {
        products += query.len() * 2 * (first + 1);
        let places = query.chunks_exact(width).zip(attended.chunks_exact_mut(width)).enumerate();
        jobs.extend(places.map(|(i, (query, out))| {
            (layer, i % shape.kv_heads, first + i / shape.kv_heads + 1, query, out)
        }));
    }
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
        for (layer, head, positions, query, out) in batch {
            one_head(kernels, shape.head_dim, layer, head, positions, query, out, &mut scratch);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cpu::cache::Cache;
    use crate::cpu::dot::Simd;
    use crate::device::Activations;

    /// The formula in float64, one query head at one token; all arrays of one KV head, (S, D).
    fn reference(q: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let d = q.len();
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
        let weights: Vec<f64> = keys.chunks(d).map(|k| (dot(k) / (d as f64).sqrt()).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let value = |i| weights.iter().zip(values.chunks(d)).map(|(w, v)| w * f64::from(v[i])).sum::<f64>();
        (0..d).map(|i| value(i) / sum).collect()
    }

    #[test]
    fn matches_the_formula_over_many_positions() {
        let mut seed = 5u32;
        let mut random = |n: usize| -> Vec<f32> {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
            };
            // Halves hold them exactly, so that one bound serves both caches.
            (0..n).map(|_| (next() * 64.0).round() / 32.0).collect()
        };
        // Head sizes that do and do not fill the lanes; positions within a piece, at its border and over several.
        for (head_dim, heads, kv_heads) in [(8, 4, 2), (64, 6, 2), (20, 3, 3), (128, 4, 1)] {
            let shape = ModelShape {
                hidden: 1,
                mlp: 1,
                layers: 1,
                heads,
                kv_heads,
                head_dim,
                vocab: 1,
                context: 200,
            };
            for (first, tokens) in [(0, 1), (0, 3), (62, 3), (147, 2)] {
                let positions = first + tokens;
                let keys = random(positions * kv_heads * head_dim);
                let values = random(positions * kv_heads * head_dim);
                let query = random(tokens * heads * head_dim);
                let of_head = |all: &[f32], h: usize, count: usize| -> Vec<f32> {
                    let rows = all.chunks(kv_heads * head_dim).take(count);
                    rows.flat_map(|row| row[h * head_dim..(h + 1) * head_dim].to_vec()).collect()
                };
                for (activations, simd) in [Activations::F32, Activations::Int8]
                    .into_iter()
                    .flat_map(|a| Simd::available().into_iter().map(move |simd| (a, simd)))
                {
                    let mut cache = Cache::new(&shape, 200, activations).unwrap();
                    let width = kv_heads * head_dim;
                    for (s, (key, value)) in keys.chunks(width).zip(values.chunks(width)).enumerate() {
                        cache.layers[0].write(s, key, value);
                    }
                    let mut attended = vec![f32::NAN; query.len()];
                    let (kernels, workers) = (simd.kernels().unwrap(), Workers::new(Some(2)).unwrap());
                    let layer = &cache.layers[0];
                    let queries = Queries { layer, first, query: &query, attended: &mut attended };
                    attend(&kernels, &workers, &shape, [queries]);
                    for (i, (q, out)) in query.chunks(head_dim).zip(attended.chunks(head_dim)).enumerate() {
                        let (token, head) = (i / heads, i % heads / (heads / kv_heads));
                        let seen = first + token + 1;
                        let expected =
                            reference(q, &of_head(&keys, head, seen), &of_head(&values, head, seen));
                        for (a, e) in out.iter().zip(expected) {
                            // Weights add up to one and values stay below two: float32 sums are off by 1e-7 at most.
                            let case = format!("D {head_dim} first {first} {activations:?} {simd:?}");
                            assert!((f64::from(*a) - e).abs() < 2e-6, "{case}: {a}, expected {e}");
                        }
                    }
                }
            }
        }
    }
}
