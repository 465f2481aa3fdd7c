//! What the kernels compute, in float64 and one value at a time.

use crate::kernels::attention::{CombineParams, Params as Attention};
use crate::kernels::project::{Mode, Params as Project};
use crate::kernels::{BLOCK, CHUNK, prepare, rope};

fn f(value: f32) -> f64 {
    f64::from(value)
}

/// y after a projection; `added` is what the tail adds, (T, R).
pub(super) fn project(
    p: &Project,
    weights: &[f32],
    x: &[f64],
    bias: &[f32],
    added: &[f64],
    before: &[f32],
) -> Vec<f64> {
    let mut y: Vec<f64> = before.iter().copied().map(f).collect();
    let (rows, width) = (p.rows as usize, p.blocks as usize * BLOCK);
    for token in 0..p.tokens as usize {
        let x = &x[(p.x_row as usize + token) * width..][..width];
        for (row, weights) in weights.chunks(width).enumerate().take(rows) {
            let mut value: f64 = weights.iter().zip(x).map(|(w, x)| f(*w) * x).sum();
            value += added[token * rows + row];
            if p.has_bias != 0 {
                value += f(bias[row]);
            }
            let at = (p.y_row as usize + token) * p.y_stride as usize + p.y_column as usize + row;
            if p.mode == Mode::Add as u32 {
                value += y[at];
            } else if p.mode == Mode::Gate as u32 {
                value *= y[at] / (1.0 + (-y[at]).exp());
            }
            y[at] = value;
        }
    }
    y
}

/// (T, R, r / 8): each chunk of up rows (R, r) times that of inner values (T, r of the step), of which this linear's begin
/// at a chunk.
pub(super) fn expand(
    up: &[f32],
    inner: &[f32],
    (rows, tokens, chunks): (usize, usize, usize),
    (stride, offset): (usize, usize),
) -> Vec<f64> {
    let mut products = Vec::with_capacity(tokens * rows * chunks);
    for token in 0..tokens {
        for chunk in 0..rows * chunks {
            let inner = &inner[(token * stride + offset + chunk % chunks) * CHUNK..];
            let up = &up[chunk * CHUNK..][..CHUNK];
            products.push(up.iter().zip(inner).map(|(u, i)| f(*u) * f(*i)).sum());
        }
    }
    products
}

/// (T, r) inner values; `factors` are (r, 2): a scaling, and twice the adapter whose scale counts, plus 1 for a GELU.
pub(super) fn shrink(down: &[f32], (factors, scales): (&[f32], &[f32]), x: &[f32], width: usize) -> Vec<f64> {
    let mut inner = Vec::new();
    for x in x.chunks(width) {
        for (down, factor) in down.chunks(width).zip(factors.chunks(2)) {
            let value: f64 = down.iter().zip(x).map(|(d, x)| f(*d) * f(*x)).sum();
            let kind = factor[1] as usize;
            let value = if kind.is_multiple_of(2) { value } else { gelu(value) };
            inner.push(f(factor[0]) * f(scales[kind / 2]) * value);
        }
    }
    inner
}

/// 0.5 v (1 + erf(v / √2)), erf by its series: enough for the few units that inner values have here.
fn gelu(v: f64) -> f64 {
    let x = v / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    0.5 * v * (1.0 + sum * 2.0 / std::f64::consts::PI.sqrt())
}

/// (T, K) inputs after their norm.
pub(super) fn prepare(p: &prepare::Params, norm: &[f32], x: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks(p.blocks as usize * BLOCK) {
        let mean = row.iter().map(|v| f(*v) * f(*v)).sum::<f64>() / f64::from(p.cols);
        let factor = 1.0 / (mean + f(p.epsilon)).sqrt();
        let normed = row.iter().zip(norm).map(|(v, n)| f(*v) * factor * f(*n));
        match p.normalise {
            0 => out.extend(row.iter().copied().map(f)),
            _ => out.extend(normed),
        }
    }
    out
}

/// Element `d` of a head, rotated; pairs are (i, i + D/2).
fn rotated(head: &[f32], angles: &[f32], d: usize) -> f64 {
    let half = head.len() / 2;
    let (cosine, sine) = (f(angles[d % half * 2]), f(angles[d % half * 2 + 1]));
    let partner = if d < half { -f(head[d + half]) } else { f(head[d - half]) };
    f(head[d]) * cosine + partner * sine
}

/// A cache's buffer after keys (with angles) or values (without) were appended.
pub(super) fn append(p: &rope::Params, rows: &[f32], angles: Option<&[f32]>, before: &[f32]) -> Vec<f64> {
    let mut cache: Vec<f64> = before.iter().copied().map(f).collect();
    let (dim, padded) = (p.dim as usize, p.chunks as usize * 4);
    for (token, row) in rows.chunks(p.stride as usize).enumerate().take(p.tokens as usize) {
        for (head, values) in row.chunks(dim).enumerate().take(p.kv_heads as usize) {
            let at = (head * p.capacity as usize + p.position as usize + token) * padded;
            let line = &mut cache[at..at + padded];
            line.fill(0.0);
            for (d, to) in line.iter_mut().enumerate().take(dim) {
                *to = match angles {
                    Some(angles) => rotated(values, &angles[token * dim..], d),
                    None => f(values[d]),
                };
            }
        }
    }
    cache
}

/// The output after attention, whole or in spans.
pub(super) fn attend(
    p: &Attention,
    query: &[f32],
    angles: &[f32],
    keys: &[f32],
    values: &[f32],
    kv_heads: usize,
    before: &[f32],
) -> Vec<f64> {
    let mut out: Vec<f64> = before.iter().copied().map(f).collect();
    let (dim, padded, group) = (p.dim as usize, p.chunks as usize * 4, p.group as usize);
    for token in 0..p.tokens as usize {
        let positions = p.position as usize + token + 1;
        for head in 0..kv_heads * group {
            let query = &query[token * p.stride as usize + head * dim..][..dim];
            let query: Vec<f64> = (0..dim).map(|d| rotated(query, &angles[token * dim..], d)).collect();
            let line = |position: usize| (head / group * p.capacity as usize + position) * padded;
            for (span, first) in (0..positions).step_by(p.span as usize).enumerate() {
                let seen = first..(first + p.span as usize).min(positions);
                let scores: Vec<f64> = seen
                    .clone()
                    .map(|at| query.iter().zip(&keys[line(at)..]).map(|(q, k)| q * f(*k)).sum::<f64>())
                    .map(|dot| dot * f(p.scale))
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
                let total: f64 = weights.iter().sum();
                let at = p.out_first as usize
                    + token * p.out_token as usize
                    + head * p.out_head as usize
                    + span * p.out_split as usize;
                for d in 0..dim {
                    let sum: f64 =
                        seen.clone().zip(&weights).map(|(at, w)| w * f(values[line(at) + d])).sum();
                    out[at + d] = if p.partly == 0 { sum / total } else { sum };
                }
                if p.partly != 0 {
                    out[at + dim] = largest;
                    out[at + dim + 1] = total;
                }
            }
        }
    }
    out
}

/// The attended slot after its spans were joined.
pub(super) fn combine(p: &CombineParams, spans: &[f32], before: &[f32]) -> Vec<f64> {
    let mut out: Vec<f64> = before.iter().copied().map(f).collect();
    let (dim, heads, splits) = (p.dim as usize, p.heads as usize, p.splits as usize);
    for (i, spans) in spans.chunks(splits * (dim + 2)).enumerate() {
        let spans: Vec<&[f32]> = spans.chunks(dim + 2).collect();
        let largest = spans.iter().map(|span| f(span[dim])).fold(f64::MIN, f64::max);
        let weights: Vec<f64> = spans.iter().map(|span| (f(span[dim]) - largest).exp()).collect();
        let sum = |d: usize| spans.iter().zip(&weights).map(|(span, w)| w * f(span[d])).sum::<f64>();
        let at = (p.row as usize + i / heads) * p.stride as usize + i % heads * dim;
        for d in 0..dim {
            out[at + d] = sum(d) / sum(dim + 1);
        }
    }
    out
}
