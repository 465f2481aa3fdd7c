//! The low-rank tail beside a linear: `t = scaling · act(down · x)`, then `y += up · t`, ranks concatenated.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::math::gelu;
use super::matmul::Projection;
use super::plan::halves;
use crate::adapter::{Branch, Tail};
use crate::device::Activations;
use crate::error::{Error, Result};
use crate::weights::{DType, Matrix, Tensor};

/// Rows whose `up` values are widened at a time.
const ROWS: usize = 256;

/// A resident adapter: for each linear its tail, if it has one.
pub(super) struct ResidentTail {
    pub(super) linears: Vec<Option<LinearTail>>,
    /// Held.
    pub(super) bytes: u64,
}

/// All branches of one linear.
pub(super) struct LinearTail {
    /// (r, K).
    pub(super) down: Projection,
    /// (r, R): a column of the up matrix after the other, so that rows and tokens vectorise alike.
    up: Up,
    /// For each of the r inner values: factor and whether a GELU comes first.
    inner: Vec<(f32, bool)>,
    rows: usize,
}

enum Up {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

impl ResidentTail {
    /// Converts branches whose shapes were checked; refuses values that are not finite.
    pub(super) fn new(tail: &Tail, activations: Activations) -> Result<Self> {
        let mut bytes = 0;
        let linears = tail
            .branches
            .iter()
            .map(|list| {
                let linear = LinearTail::new(list, activations)?;
                if let Some(linear) = &linear {
                    bytes += linear.byte_len(list);
                }
                Ok(linear)
            })
            .collect::<Result<_>>()?;
        Ok(Self { linears, bytes })
    }
}

impl LinearTail {
    fn new(list: &[Branch], activations: Activations) -> Result<Option<Self>> {
        let rank: usize = list.iter().map(Branch::rank).sum();
        let (Some(first), true) = (list.first(), rank > 0) else { return Ok(None) };
        let (rows, cols) = (first.up.shape().0, first.down.shape().1);
        let (mut down, mut up, mut inner) = (Vec::new(), Vec::with_capacity(rank * rows), Vec::new());
        for branch in list {
            if !branch.scaling.is_finite() {
                return Err(Error::option("adapter scaling", branch.scaling, "must be finite"));
            }
            down.extend(branch.down.to_f32()?);
            let values = branch.up.to_f32()?;
            let rank = branch.rank();
            (0..rank).for_each(|j| up.extend((0..rows).map(|r| values[r * rank + j])));
            inner.extend(std::iter::repeat_n((branch.scaling, branch.kind.is_gelu()), rank));
        }
        let name = first.down.tensor().name.clone();
        let down = match narrow(&down, halves(list, |b| &b.down, activations)) {
            Some(halves) => Tensor::from_slice(&name, DType::F16, &[rank, cols], &halves)?,
            None => Tensor::from_f32(&name, &[rank, cols], &down)?,
        };
        let up = match narrow(&up, halves(list, |b| &b.up, activations)) {
            Some(halves) => Up::F16(halves),
            None => Up::F32(up),
        };
        Ok(Some(Self { down: Projection::new(&Matrix::dense(down)?)?, up, inner, rows }))
    }

    fn byte_len(&self, list: &[Branch]) -> u64 {
        let rank: usize = list.iter().map(Branch::rank).sum();
        let up = match &self.up {
            Up::F32(values) => 4 * values.len(),
            Up::F16(values) => 2 * values.len(),
        };
        (self.down.byte_len() + up + rank * size_of::<(f32, bool)>()) as u64
    }

    /// r.
    pub(super) fn rank(&self) -> usize {
        self.inner.len()
    }

    /// Makes `t` of `down · x` for some of the ranks, in place; both (ranks, T).
    pub(super) fn activate(&self, ranks: Range<usize>, t: &mut [f32], tokens: usize) {
        for (row, (scaling, is_gelu)) in t.chunks_mut(tokens.max(1)).zip(&self.inner[ranks]) {
            for v in row {
                *v = if *is_gelu { gelu(*v) } else { *v } * scaling;
            }
        }
    }

    /// `out[r, t] += Σ_j up[r, j] t[j, t]` for the rows `rows` and the tokens `of`, one rank after the other; `out` is
    /// (rows, `tokens`), `t` has the tokens `of` only.
    pub(super) fn add(
        &self,
        rows: Range<usize>,
        t: &[f32],
        of: Range<usize>,
        tokens: usize,
        out: &mut [f32],
    ) {
        let mut widened = [0.0; ROWS];
        for (i, out) in out.chunks_mut(ROWS * tokens.max(1)).enumerate() {
            let count = out.len() / tokens.max(1);
            for (j, t) in t.chunks(of.len().max(1)).enumerate() {
                let start = j * self.rows + rows.start + i * ROWS;
                let column = match &self.up {
                    Up::F32(values) => &values[start..start + count],
                    Up::F16(values) => {
                        values[start..start + count].convert_to_f32_slice(&mut widened[..count]);
                        &widened[..count]
                    }
                };
                match t {
                    [t] if tokens == 1 => out.iter_mut().zip(column).for_each(|(out, u)| *out += u * t),
                    _ => {
                        for (out, u) in out.chunks_exact_mut(tokens.max(1)).zip(column) {
                            out[of.clone()].iter_mut().zip(t).for_each(|(out, t)| *out += u * t);
                        }
                    }
                }
            }
        }
    }
}

/// The values as halves, where that is wanted and each has one.
fn narrow(values: &[f32], wanted: bool) -> Option<Vec<f16>> {
    if !wanted {
        return None;
    }
    let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
    halves.iter().all(|h| h.is_finite()).then_some(halves)
}
