//! Sums of outer products of input rows.

use std::collections::HashMap;
use std::sync::Arc;

use calora::arch::{LinearId, Recipe};
use calora::cpu::Inputs;
use calora::{Error, Result};

use crate::linalg::{View, add_gram};

/// `sum of x x^T` over the rows that went into a linear. Float32: terms are added some hundred rows at a time, so its
/// rounding (1e-6 of the diagonal) is far below any damping that a factorisation needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// K.
    pub size: usize,
    /// How many rows.
    pub tokens: usize,
    /// (K, K), both triangles.
    pub sum: Vec<f32>,
}

impl Moment {
    /// `trace(E C E^T)` of (R, K) rows `E`: the sum over all tokens of `|E x|^2`.
    pub fn energy(&self, rows: &[f32]) -> f64 {
        /// Rows at a time.
        const BLOCK: usize = 1024;
        let size = self.size;
        let mut product = Vec::new();
        let mut energy = 0.0;
        for rows in rows.chunks(BLOCK * size.max(1)) {
            product.resize(rows.len(), 0.0);
            let count = rows.len().checked_div(size).unwrap_or(0);
            let (e, c) = (View::new(rows, count, size, size), View::new(&self.sum, size, size, size));
            crate::linalg::multiply(e, c, false, &mut product, size);
            energy += crate::linalg::dot(&product, rows);
        }
        energy
    }
}

/// Moments by linear; linears that share an input share one.
#[derive(Clone, Debug, Default)]
pub struct Moments {
    by_path: HashMap<String, Arc<Moment>>,
}

impl Moments {
    /// The moment of a linear's input.
    pub fn get(&self, path: &str) -> Option<Arc<Moment>> {
        self.by_path.get(path).cloned()
    }

    /// The linears, in no order.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.by_path.keys().map(String::as_str)
    }

    /// Takes over another's moments.
    pub fn merge(&mut self, other: Self) {
        self.by_path.extend(other.by_path);
    }

    pub(super) fn of(recipe: &Recipe, sums: Vec<Sum>) -> Result<Self> {
        let mut by_path = HashMap::new();
        for sum in sums {
            let linears = sum.linears.clone();
            let moment = Arc::new(sum.finish());
            for id in linears {
                let path = &recipe.linears[id.0].path;
                let diagonal = moment.sum.iter().step_by(moment.size + 1);
                if let Some(channel) = diagonal.clone().position(|v| !v.is_finite()) {
                    return Err(Error::InvalidOption {
                        option: "calibration".into(),
                        value: path.clone(),
                        reason: format!("channel {channel} of this linear's input becomes infinite or NaN"),
                    });
                }
                by_path.insert(path.clone(), moment.clone());
            }
        }
        Ok(Self { by_path })
    }
}

/// Rows that are collected before their products are added, so that short sequences do not each walk the whole matrix.
const PENDING: usize = 512;

/// A moment in the making.
pub(super) struct Sum {
    pub(super) linears: Vec<LinearId>,
    size: usize,
    tokens: usize,
    pending: Vec<f32>,
    /// The upper triangle.
    sum: Vec<f32>,
}

impl Sum {
    pub(super) fn new(linears: Vec<LinearId>, size: usize) -> Self {
        Self { linears, size, tokens: 0, pending: Vec::new(), sum: vec![0.0; size * size] }
    }

    pub(super) fn add(&mut self, inputs: &Inputs<'_>) {
        for row in inputs.values.chunks_exact(inputs.stride.max(1)) {
            self.pending.extend_from_slice(&row[..self.size]);
            self.tokens += 1;
            if self.pending.len() == PENDING * self.size {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let rows = self.pending.len().checked_div(self.size).unwrap_or(0);
        add_gram(View::new(&self.pending, rows, self.size, self.size), &mut self.sum);
        self.pending.clear();
    }

    fn finish(mut self) -> Moment {
        self.flush();
        let Self { size, tokens, mut sum, .. } = self;
        for i in 0..size {
            for j in 0..i {
                sum[i * size + j] = sum[j * size + i];
            }
        }
        Moment { size, tokens, sum }
    }
}
