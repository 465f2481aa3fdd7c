//! Rounding with error feedback: GPTQ (Frantar et al. 2022, arXiv 2210.17323) in the form of LDLQ, which is the same
//! algorithm (Chee et al. 2023, arXiv 2307.13304, theorem 6) without an inverse.
//!
//! The error of the outputs, `tr((Q - W) H (Q - W)^T)` with `H` the damped second moments of the inputs, is with
//! `H = (U + I) D (U + I)^T`, `U` strictly upper, a sum over columns of `D_j (e_j + sum_{i<j} e_i U_ij)^2` for `e = Q - W`.
//! Columns are rounded from first to last, each after what the errors before it leave: `w_j - sum_{i<j} e_i U_ij`.

use calora::quant::Scheme;
use calora::quant::grid::{Grid, weighted_search};
use calora::quant::round::{RoundedRow, ScaleType};
use calora::{Error, Result};
use rayon::prelude::*;

use super::option;
use crate::calibrate::Moment;
use crate::linalg::{View, cholesky, multiply};

/// Columns rounded between two large products, at least; whole groups up to [`LARGEST`].
const BLOCK: usize = 128;
/// Larger groups get their scale from the weights as they were, so that blocks stay small.
const LARGEST: usize = 512;

/// What errors in one column do to later ones.
pub(super) struct Feedback {
    size: usize,
    /// (K, K), `U`: row i holds what one unit of error in column i takes from the later columns.
    factor: Vec<f32>,
    /// (K) `D`: what an error in a column costs that later ones can no longer repair.
    cost: Vec<f32>,
}

impl Feedback {
    /// From moments, their diagonal raised by `damping` times its mean.
    pub(super) fn new(path: &str, moment: &Moment, damping: f64) -> Result<Self> {
        let size = moment.size;
        let mean = (0..size).map(|i| f64::from(moment.sum[i * size + i])).sum::<f64>() / size.max(1) as f64;
        // An input that is always zero: any rounding is right.
        let mean = if mean > 0.0 { mean } else { 1.0 };
        // Upper factors are lower ones of the matrix with its rows and columns in reverse.
        let mut reversed: Vec<f64> = moment.sum.iter().rev().map(|v| f64::from(*v) / mean).collect();
        (0..size).for_each(|i| reversed[i * size + i] += damping);
        cholesky(&mut reversed, size).map_err(|column| {
            let channel = size - 1 - column;
            let reason = format!("too small for {path}: not positive definite at input channel {channel}");
            option("damping", damping, reason)
        })?;
        let diagonal: Vec<f64> = (0..size).map(|j| reversed[(size - 1 - j) * (size + 1)]).collect();
        let factor = reversed.par_iter().rev().enumerate();
        let factor = factor.map(|(at, v)| (v / diagonal[at % size.max(1)]) as f32).collect();
        let cost = diagonal.iter().map(|d| (d * d) as f32).collect();
        Ok(Self { size, factor, cost })
    }

    /// Rounds (R, K) weights and replaces them by what they became.
    pub(super) fn round(
        &self,
        scheme: Scheme,
        scale_type: ScaleType,
        weights: &mut [f32],
    ) -> Vec<RoundedRow> {
        let size = self.size;
        let group = scheme.group_size(size);
        let block = match group {
            small if small <= BLOCK => BLOCK / small * small,
            large if large <= LARGEST => large,
            _ => BLOCK,
        };
        let rows = weights.len().checked_div(size).unwrap_or(0);
        let mut errors = vec![0.0f32; weights.len()];
        let mut state: Vec<Row> =
            weights.par_chunks(size).map(|row| Row::new(row, scheme, scale_type, block)).collect();
        let mut targets = Vec::new();
        for start in (0..size).step_by(block) {
            let width = block.min(size - start);
            targets.resize(rows * width, 0.0);
            let from = View::new(&errors, rows, start, size);
            let to = View::new(&self.factor[start..], start, width, size);
            multiply(from, to, false, &mut targets, width);
            let rows = state.par_iter_mut().zip(targets.par_chunks_mut(width));
            rows.zip(weights.par_chunks(size)).zip(errors.par_chunks_mut(size)).for_each(
                |(((row, target), weights), errors)| {
                    target.iter_mut().zip(&weights[start..]).for_each(|(t, w)| *t = w - *t);
                    self.round_block(row, start, target, weights, errors);
                },
            );
        }
        weights.par_iter_mut().zip(&errors).for_each(|(w, e)| *w += e);
        let errors = errors.par_chunks(size);
        let rows = state.into_par_iter().zip(errors);
        rows.map(|(row, errors)| {
            let squared = errors.iter().map(|e| f64::from(*e).powi(2)).sum();
            RoundedRow::new(scheme, &row.integers, &row.grids, squared)
        })
        .collect()
    }

    /// Rounds the columns from `start` on, for which `target` holds what is wanted after all earlier blocks.
    fn round_block(
        &self,
        row: &mut Row,
        start: usize,
        target: &mut [f32],
        weights: &[f32],
        errors: &mut [f32],
    ) {
        for i in 0..target.len() {
            let column = start + i;
            if column.is_multiple_of(row.group) && row.grids.len() <= column / row.group {
                let costs = &self.cost[column..column + row.group];
                row.grids.push(row.search(&target[i..i + row.group], costs));
            }
            let grid = row.grids[column / row.group];
            let integer = grid.nearest(target[i]);
            row.integers.push(integer);
            let error = grid.value(integer) - weights[column];
            errors[column] = error;
            let effects = &self.factor[column * self.size + column + 1..];
            target[i + 1..].iter_mut().zip(effects).for_each(|(t, effect)| *t -= error * effect);
        }
    }
}

/// One row on its way.
struct Row {
    scheme: Scheme,
    scale_type: ScaleType,
    group: usize,
    integers: Vec<u8>,
    grids: Vec<Grid>,
}

impl Row {
    fn new(weights: &[f32], scheme: Scheme, scale_type: ScaleType, block: usize) -> Self {
        let group = scheme.group_size(weights.len());
        let mut row = Self {
            scheme,
            scale_type,
            group,
            integers: Vec::with_capacity(weights.len()),
            grids: Vec::new(),
        };
        if group > block {
            let even = vec![1.0; group];
            row.grids = weights.chunks(group).map(|group| row.search(group, &even[..group.len()])).collect();
        }
        row
    }

    /// The grid of least cost for a group.
    fn search(&self, weights: &[f32], costs: &[f32]) -> Grid {
        weighted_search(self.scheme, self.scale_type, weights, costs)
    }
}

/// Refuses text that is too short to tell the inputs of the widest linear apart.
pub(super) fn check_tokens(tokens: usize, widest: usize) -> Result<()> {
    if tokens >= widest {
        return Ok(());
    }
    let reason = format!("gptq needs at least as many tokens as the widest linear has inputs, {widest}");
    Err(Error::InvalidOption { option: "calibration".into(), value: format!("{tokens} tokens"), reason })
}
