//! The best correction of low rank for a compressed linear, computed rather than trained.
//!
//! With `E = W - Q(W)` and the second moments `C` of the linear's input, the factors that minimise
//! `||(E - up down) C^1/2||_F`, the error of the outputs over the calibration tokens, are: `up` the eigenvectors of
//! `E C E^T` of the largest eigenvalues, `down = up^T E` (QERA, Zhang et al. 2024, arXiv 2410.06040, derives the same
//! minimum by C^1/2; here no root and no inverse is taken). Without moments `C` is the identity, and it is the truncated
//! singular value decomposition (Eckart-Young).

use calora::{Error, Result};

use crate::calibrate::Moment;
use crate::linalg::{View, dot, multiply, orthonormalise, symmetric_eigen};

/// `up down` approximates a residual.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// r.
    pub rank: usize,
    /// (r, K).
    pub down: Vec<f32>,
    /// (R, r).
    pub up: Vec<f32>,
}

/// The most steps of subspace iteration.
const STEPS: usize = 24;
/// It ends when a step adds less than this part to what the factors capture.
const GAIN: f64 = 1e-4;
/// Vectors beyond the rank, whose directions are thrown away: the wanted ones then converge.
const EXTRA: usize = 16;

/// The factors of rank `rank` of a residual (R, K), exact to some 1e-4 of the captured energy (block subspace
/// iteration with Rayleigh-Ritz, from a fixed start: the same input gives the same bits on the same number of threads).
///
/// Every column of `up` has the norm of its row of `down`, which is what training wants; pairs are in order of their
/// energy, and those beyond the residual's own rank are zero. Refuses lengths that do not agree and values that are not
/// finite.
pub fn factors(residual: &[f32], rows: usize, moment: Option<&Moment>, rank: usize) -> Result<Factors> {
    let cols = residual.len().checked_div(rows).unwrap_or(0);
    if rows * cols != residual.len() || cols == 0 {
        return Err(option("residual", residual.len(), format!("is not {rows} rows of equal length")));
    }
    if let Some(moment) = moment.filter(|m| m.size != cols || m.sum.len() != cols * cols) {
        return Err(option("moment", moment.size, format!("the residual has {cols} columns")));
    }
    if let Some(at) = residual.iter().position(|v| !v.is_finite()) {
        return Err(option("residual", residual[at], format!("element {at} is not finite")));
    }
    let problem = Problem { residual, rows, cols, moment };
    let count = (rank + EXTRA).min(rows).min(cols);
    let basis = problem.subspace(count, rank.min(count));
    let kept = rank.min(count);

    let mut down = vec![0.0; rank * cols];
    multiply(View::new(&basis, kept, rows, rows), problem.view(), false, &mut down[..kept * cols], cols);
    let mut up = vec![0.0; rows * rank];
    for (i, (vector, down)) in
        basis.chunks_exact(rows).zip(down.chunks_exact_mut(cols)).take(kept).enumerate()
    {
        let norm = dot(down, down).sqrt().sqrt() as f32;
        let inverse = if norm > 0.0 { 1.0 / norm } else { 0.0 };
        down.iter_mut().for_each(|v| *v *= inverse);
        for (row, v) in up.chunks_exact_mut(rank).zip(vector) {
            row[i] = v * norm;
        }
    }
    Ok(Factors { rank, down, up })
}

impl Factors {
    /// Twice the rank, every pair with its mirror image: `[up, -up] gelu([down; -down] x)` is exactly `up down x`, because
    /// `gelu(z) - gelu(-z) = z`. A recovery branch that starts so starts from the residual.
    pub fn mirrored(&self) -> Self {
        let negative = self.down.iter().map(|v| -v);
        let down = self.down.iter().copied().chain(negative).collect();
        let rows = self.up.chunks(self.rank.max(1));
        let up = rows.flat_map(|row| row.iter().copied().chain(row.iter().map(|v| -v))).collect();
        Self { rank: 2 * self.rank, down, up }
    }
}

/// [`factors`] for a GELU branch of rank `rank`, which must be even: half as many pairs, mirrored.
pub fn gelu_factors(residual: &[f32], rows: usize, moment: Option<&Moment>, rank: usize) -> Result<Factors> {
    if rank % 2 == 1 {
        return Err(option("recovery rank", rank, "must be even: every pair starts with its mirror image"));
    }
    Ok(factors(residual, rows, moment, rank / 2)?.mirrored())
}

struct Problem<'a> {
    residual: &'a [f32],
    rows: usize,
    cols: usize,
    moment: Option<&'a Moment>,
}

impl<'a> Problem<'a> {
    fn view(&self) -> View<'a, f32> {
        View::new(self.residual, self.rows, self.cols, self.cols)
    }

    /// (count, R) rows `v` to `v E C E^T`; the products `v E` are left in `inner`.
    fn apply(&self, block: &[f32], count: usize, inner: &mut [Vec<f32>; 2], out: &mut [f32]) {
        let (rows, cols) = (self.rows, self.cols);
        let [first, second] = inner;
        first.resize(count * cols, 0.0);
        multiply(View::new(block, count, rows, rows), self.view(), false, first, cols);
        let weighted = match self.moment {
            None => first,
            Some(moment) => {
                second.resize(count * cols, 0.0);
                let c = View::new(&moment.sum, cols, cols, cols);
                multiply(View::new(first, count, cols, cols), c, false, second, cols);
                second
            }
        };
        multiply(View::new(weighted, count, cols, cols), self.view().transposed(), false, out, rows);
    }

    /// (count, R) orthonormal rows, the first `rank` of them nearly the leading eigenvectors of `E C E^T`, in order.
    fn subspace(&self, count: usize, rank: usize) -> Vec<f32> {
        let rows = self.rows;
        let mut basis = noise(count * rows);
        let mut image = vec![0.0; count * rows];
        let mut inner = [Vec::new(), Vec::new()];
        orthonormalise(&mut basis, rows);
        let mut captured = 0.0;
        for _ in 0..STEPS {
            self.apply(&basis, count, &mut inner, &mut image);
            // Rayleigh-Ritz: the eigenvectors of the small matrix turn the basis towards those of the large one.
            let mut small = vec![0.0; count * count];
            for i in 0..count {
                for j in 0..=i {
                    let (a, b) = (&basis[i * rows..][..rows], &image[j * rows..][..rows]);
                    let (c, d) = (&basis[j * rows..][..rows], &image[i * rows..][..rows]);
                    let value = (dot(a, b) + dot(c, d)) / 2.0;
                    (small[i * count + j], small[j * count + i]) = (value, value);
                }
            }
            let (values, turn) = symmetric_eigen(small, count);
            let now: f64 = values.iter().take(rank).sum();
            let turn: Vec<f32> = turn.iter().map(|v| *v as f32).collect();
            let turn = View::new(&turn, count, count, count);
            let done = now <= captured * (1.0 + GAIN);
            captured = now;
            // The step after the last is free: its image is there already.
            let from = View::new(&image, count, rows, rows);
            multiply(turn, from, false, &mut basis, rows);
            orthonormalise(&mut basis, rows);
            if done {
                break;
            }
        }
        basis
    }
}

/// Values around zero, always the same (SplitMix64).
fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x5eed_u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn option(option: &str, value: impl std::fmt::Display, reason: impl std::fmt::Display) -> Error {
    Error::InvalidOption { option: option.into(), value: value.to_string(), reason: reason.to_string() }
}
