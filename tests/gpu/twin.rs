//! The readable twin of the GPU: a recipe in float64, one value at a time.

use std::collections::HashMap;

use calora::adapter::{Branch, Tail};
use calora::arch::{Output, Slot, Step};
use calora::device::Model;
use calora::quant::activations::{BLOCK, Int8Row};
use calora::weights::{Matrix, Storage};

type Rows = Vec<Vec<f64>>;

/// Logits (row by row) at the wanted positions; with `int8`, inputs of compressed matrices are rounded first.
pub fn logits(model: &Model, tokens: &[u32], tail: Option<&Tail>, wanted: &[usize], int8: bool) -> Vec<f64> {
    let (recipe, weights) = (&model.recipe, &model.weights);
    let mut slots: HashMap<Slot, Rows> = HashMap::new();
    let last_attention = recipe.steps.iter().rposition(|s| matches!(s, Step::Attend { .. }));
    let mut positions: Vec<usize> = (0..tokens.len()).collect();
    for (at, step) in recipe.steps.iter().enumerate() {
        match step {
            Step::Embed { table } => {
                let table = &weights.matrices[table.0];
                let all = table.to_f32().unwrap();
                let row = |id: &u32| -> Vec<f64> {
                    let first = *id as usize * table.cols;
                    all[first..first + table.cols].iter().map(|v| f64::from(*v)).collect()
                };
                slots.insert(Slot::Residual, tokens.iter().map(row).collect());
            }
            Step::Attend { .. } => {
                // After the last attention nothing mixes positions: the wanted ones are enough.
                if Some(at) == last_attention {
                    positions = wanted.to_vec();
                    let residual = slots.remove(&Slot::Residual).unwrap();
                    let kept = wanted.iter().map(|p| residual[*p].clone()).collect();
                    slots.insert(Slot::Residual, kept);
                }
                let attended = attend(model, &slots, &positions);
                slots.insert(Slot::Attended, attended);
            }
            Step::Project { norm, input, linears, output } => {
                let mut x = slots[input].clone();
                if let Some(norm) = norm {
                    x.iter_mut().for_each(|row| rms_norm(row, &weights.vectors[norm.0], recipe.norm_eps));
                }
                let mut results = Vec::new();
                for id in linears {
                    let linear = &recipe.linears[id.0];
                    let branches = tail.and_then(|t| t.branches.get(id.0)).map_or(&[][..], Vec::as_slice);
                    let mut y = project(&weights.matrices[linear.matrix.0], &x, branches, int8);
                    if let Some(bias) = linear.bias {
                        for row in &mut y {
                            row.iter_mut()
                                .zip(&weights.vectors[bias.0])
                                .for_each(|(y, b)| *y += f64::from(*b));
                        }
                    }
                    results.push(y);
                }
                match output {
                    Output::Store(to) => slots.extend(to.iter().copied().zip(results)),
                    Output::AddToResidual => {
                        let residual = slots.get_mut(&Slot::Residual).unwrap();
                        for (row, y) in residual.iter_mut().zip(&results[0]) {
                            row.iter_mut().zip(y).for_each(|(r, y)| *r += y);
                        }
                    }
                    Output::Gated(_) => {
                        let silu = |g: f64| g / (1.0 + (-g).exp());
                        let gated = results[0].iter().zip(&results[1]).map(|(gate, up)| {
                            gate.iter().zip(up).map(|(g, u)| silu(*g) * u).collect::<Vec<f64>>()
                        });
                        let gated = gated.collect();
                        slots.insert(Slot::Gated, gated);
                    }
                }
            }
        }
    }
    let logits = &slots[&Slot::Logits];
    if logits.len() == wanted.len() {
        logits.concat()
    } else {
        wanted.iter().flat_map(|p| logits[*p].clone()).collect()
    }
}

fn rms_norm(row: &mut [f64], weight: &[f32], eps: f32) {
    let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
    let factor = 1.0 / (mean + f64::from(eps)).sqrt();
    row.iter_mut().zip(weight).for_each(|(v, w)| *v *= factor * f64::from(*w));
}

/// y = W x + Σ scaling · up · act(down · x); the branches see x unrounded.
fn project(matrix: &Matrix, x: &Rows, branches: &[Branch], int8: bool) -> Rows {
    let w = matrix.to_f32().unwrap();
    let packed = matches!(matrix.storage, Storage::Packed { .. });
    let halves: Vec<_> =
        branches.iter().map(|b| (b, b.down.to_f32().unwrap(), b.up.to_f32().unwrap())).collect();
    x.iter()
        .map(|x| {
            let rounded = if int8 && packed { round(x) } else { x.clone() };
            let mut y: Vec<f64> = w.chunks(matrix.cols).map(|row| dot(row, &rounded)).collect();
            for (branch, down, up) in &halves {
                let inner: Vec<f64> = down
                    .chunks(matrix.cols)
                    .map(|row| dot(row, x))
                    .map(|v| if branch.kind.is_gelu() { gelu(v) } else { v })
                    .map(|v| v * f64::from(branch.scaling))
                    .collect();
                for (y, row) in y.iter_mut().zip(up.chunks(branch.rank())) {
                    *y += dot(row, &inner);
                }
            }
            y
        })
        .collect()
}

fn dot(row: &[f32], x: &[f64]) -> f64 {
    row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()
}

/// x as the integer kernels see it.
fn round(x: &[f64]) -> Vec<f64> {
    let x: Vec<f32> = x.iter().map(|v| *v as f32).collect();
    let row = Int8Row::quantise(&x);
    (0..x.len()).map(|k| f64::from(row.values[k]) * f64::from(row.scales[k / BLOCK])).collect()
}

/// 0.5 v (1 + erf(v / √2)), with the series of erf near zero and its continued fraction elsewhere.
pub fn gelu(v: f64) -> f64 {
    let x = (v / std::f64::consts::SQRT_2).abs();
    let erf = if x < 3.0 {
        // erf(x) = 2/√π Σ (-1)^n x^(2n+1) / (n! (2n+1))
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else {
        // erfc(x) = exp(-x²)/√π · 1/(x + (1/2)/(x + 1/(x + (3/2)/(x + …))))
        let fraction = (1..60).rev().fold(x, |f, n| x + f64::from(n) / 2.0 / f);
        1.0 - (-x * x).exp() / std::f64::consts::PI.sqrt() / fraction
    };
    0.5 * v * (1.0 + if v < 0.0 { -erf } else { erf })
}

/// Causal attention of the queries at `positions`; keys and values are there for every position.
fn attend(model: &Model, slots: &HashMap<Slot, Rows>, positions: &[usize]) -> Rows {
    let (shape, rope) = (&model.recipe.shape, &model.recipe.rope.inverse_frequencies);
    let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
    let rotate = |head: &[f64], position: usize| -> Vec<f64> {
        (0..d)
            .map(|i| {
                let (sine, cosine) = (position as f64 * rope[i % (d / 2)]).sin_cos();
                let partner = if i < d / 2 { -head[i + d / 2] } else { head[i - d / 2] };
                head[i] * cosine + partner * sine
            })
            .collect()
    };
    let keys: Vec<Vec<f64>> = slots[&Slot::Key]
        .iter()
        .enumerate()
        .map(|(p, row)| row.chunks(d).flat_map(|head| rotate(head, p)).collect())
        .collect();
    let one = |position: usize| -> Vec<f64> {
        let mut out = vec![0.0; shape.heads * d];
        for head in 0..shape.heads {
            let query = rotate(&slots[&Slot::Query][position][head * d..(head + 1) * d], position);
            let kv = head / group * d..(head / group + 1) * d;
            let scores: Vec<f64> = (0..=position)
                .map(|p| query.iter().zip(&keys[p][kv.clone()]).map(|(q, k)| q * k).sum::<f64>())
                .map(|score| score / (d as f64).sqrt())
                .collect();
            let largest = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (p, weight) in weights.iter().enumerate() {
                for (o, v) in out[head * d..].iter_mut().zip(&slots[&Slot::Value][p][kv.clone()]) {
                    *o += weight / total * v;
                }
            }
        }
        out
    };
    positions.iter().map(|p| one(*p)).collect()
}
