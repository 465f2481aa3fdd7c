//! The low-rank branches beside a linear: `t = scale · scaling · act(down · x)`, then `y += up · t`, one after the other.
//!
//! Both matrices are read as they lie in their file, so that making an adapter resident moves no value but for the checked
//! copy. Invariant: a token's sum does not depend on the tokens that share its pass.

use std::ops::Range;

use half::f16;

use super::math::gelu;
use super::matmul::{Projection, widen};
use crate::adapter::{Branch, LowRank, Tail};
use crate::arch::LinearId;
use crate::device::{Activations, scale_of};
use crate::error::Result;
use crate::weights::{DType, Matrix, Tensor};

/// Values of an up matrix that are widened at a time; whole groups of [`LANES`].
const WIDE: usize = 1024;

/// Ranks whose products are summed as a tree before they are added to a row.
const LANES: usize = 8;

/// Adapters that are resident as one.
pub(super) struct ResidentTail {
    /// How many.
    pub(super) adapters: usize,
    /// For each linear its branches, those of the first adapter first.
    linears: Vec<Vec<ResidentBranch>>,
    /// Held.
    pub(super) bytes: u64,
}

/// One branch of one linear.
pub(super) struct ResidentBranch {
    adapter: usize,
    scaling: f32,
    is_gelu: bool,
    /// r.
    pub(super) rank: usize,
    /// (r, K).
    pub(super) down: Projection,
    /// (R, r).
    up: Tensor,
}

impl ResidentTail {
    /// Takes branches whose shapes and scalings were checked; refuses values that are not finite.
    pub(super) fn new(tails: &[&Tail], activations: Activations) -> Result<Self> {
        let linears = tails.iter().map(|tail| tail.branches.len()).max().unwrap_or(0);
        let mut this = Self { adapters: tails.len(), linears: Vec::with_capacity(linears), bytes: 0 };
        for linear in 0..linears {
            let of = |tail: &&Tail| tail.branches.get(linear).map_or(0, Vec::len);
            // As many as there are: most linears have one, and a list that grows by itself begins with four.
            let mut list = Vec::with_capacity(tails.iter().map(of).sum());
            for (adapter, tail) in tails.iter().enumerate() {
                for branch in tail.branches.get(linear).into_iter().flatten().filter(|b| b.rank() > 0) {
                    let branch = ResidentBranch::new(adapter, branch, activations)?;
                    this.bytes += (branch.down.byte_len() + branch.up.bytes().len()) as u64;
                    list.push(branch);
                }
            }
            this.linears.push(list);
        }
        Ok(this)
    }

    /// The branches of one linear whose adapters are not scaled to nothing, with what their inner values are multiplied by.
    pub(super) fn acting(
        &self,
        linear: LinearId,
        scales: &[f32],
    ) -> impl Iterator<Item = (&ResidentBranch, f32)> {
        let list = self.linears.get(linear.0).map_or(&[][..], Vec::as_slice);
        list.iter().filter_map(move |branch| {
            let scale = scale_of(scales, branch.adapter);
            (scale != 0.0).then_some((branch, branch.scaling * scale))
        })
    }
}

impl ResidentBranch {
    fn new(adapter: usize, branch: &Branch, activations: Activations) -> Result<Self> {
        Ok(Self {
            adapter,
            scaling: branch.scaling,
            is_gelu: branch.kind.is_gelu(),
            rank: branch.rank(),
            down: Projection::new(Matrix::dense(floats(&branch.down, activations)?)?)?,
            up: floats(&branch.up, activations)?,
        })
    }

    /// Makes `t` of `down · x` for some of the ranks, in place.
    pub(super) fn activate(&self, factor: f32, t: &mut [f32]) {
        for v in t {
            *v = if self.is_gelu { gelu(*v) } else { *v } * factor;
        }
    }

    /// `out[r, t] += Σ_j up[r, j] t[j, t]` for the rows `rows` and the tokens `of`; `out` is (rows, `tokens`), `t` has the
    /// tokens `of` only.
    pub(super) fn add(
        &self,
        rows: Range<usize>,
        t: &[f32],
        of: Range<usize>,
        tokens: usize,
        out: &mut [f32],
    ) {
        let mut widened = [0.0; WIDE];
        let (tokens, own) = (tokens.max(1), of.len());
        for start in (0..self.rank).step_by(WIDE) {
            let width = WIDE.min(self.rank - start);
            let t = &t[start * own..(start + width) * own];
            // Whole rows lie side by side; of longer ones a piece at a time.
            let count = if width == self.rank { WIDE / width } else { 1 };
            for (i, out) in out.chunks_mut(count * tokens).enumerate() {
                let values = &mut widened[..out.len() / tokens * width];
                widen(&self.up, (rows.start + i * count) * self.rank + start, values);
                match tokens {
                    1 => add_to_one(values, t, out),
                    _ => add_to_many(values, width, t, (of.clone(), tokens), out),
                }
            }
        }
    }
}

/// `out[r] += Σ_j up[r, j] t[j]`.
fn add_to_one(up: &[f32], t: &[f32], out: &mut [f32]) {
    let (groups, rest) = t.as_chunks::<LANES>();
    for (out, row) in out.iter_mut().zip(up.chunks_exact(t.len())) {
        let (row_groups, row_rest) = row.as_chunks::<LANES>();
        for (u, t) in row_groups.iter().zip(groups) {
            *out += tree(|i| u[i] * t[i]);
        }
        row_rest.iter().zip(rest).for_each(|(u, t)| *out += u * t);
    }
}

/// The same for some of several tokens, in the same order.
fn add_to_many(up: &[f32], rank: usize, t: &[f32], (of, all): (Range<usize>, usize), out: &mut [f32]) {
    let tokens = of.len();
    for (out, row) in out.chunks_exact_mut(all).zip(up.chunks_exact(rank)) {
        let out = &mut out[of.clone()];
        let (groups, rest) = row.as_chunks::<LANES>();
        let (whole, last) = t.split_at(groups.len() * LANES * tokens);
        for (u, t) in groups.iter().zip(whole.chunks_exact(LANES * tokens)) {
            let t: [&[f32]; LANES] = std::array::from_fn(|i| &t[i * tokens..][..out.len()]);
            for (k, out) in out.iter_mut().enumerate() {
                *out += tree(|i| u[i] * t[i][k]);
            }
        }
        for (u, t) in rest.iter().zip(last.chunks_exact(tokens)) {
            out.iter_mut().zip(t).for_each(|(out, t)| *out += u * t);
        }
    }
}

/// The sum of eight values: halves added to halves, as vector units do.
#[inline(always)]
fn tree(value: impl Fn(usize) -> f32) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| value(i) + value(i + 4));
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Floats in memory of this process, as they are stored; int8 becomes f16, or f32 in the reference mode and where f16 does
/// not reach.
fn floats(matrix: &LowRank, activations: Activations) -> Result<Tensor> {
    let stored = match matrix {
        LowRank::Float(tensor) => {
            let tensor = tensor.copied()?;
            tensor.check_finite()?;
            return Ok(tensor);
        }
        LowRank::Int8 { values, .. } => values,
    };
    let values = matrix.copied()?.to_f32()?;
    let halves: Vec<f16> = match activations {
        // int8 times its scale is rounded once more by f16.
        Activations::Int8 => values.iter().map(|v| f16::from_f32(*v)).collect(),
        Activations::F32 => Vec::new(),
    };
    if activations == Activations::Int8 && halves.iter().all(|h| h.is_finite()) {
        return Tensor::from_slice(&stored.name, DType::F16, &stored.shape, &halves);
    }
    Tensor::from_f32(&stored.name, &stored.shape, &values)
}
