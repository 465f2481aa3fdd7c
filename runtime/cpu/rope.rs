//! Rotary position embedding: angles of a pass's positions, made once and applied in every layer.

use super::plan::Sizes;
use super::run::reserve;
use crate::arch::Rope;
use crate::error::Result;

/// Cosines and sines, (T, D/2) each.
#[derive(Default)]
pub(super) struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Angles {
    /// Makes room for the longest pass.
    pub(super) fn reserve(&mut self, sizes: &Sizes) -> Result<()> {
        reserve(&mut self.cos, sizes.angles)?;
        reserve(&mut self.sin, sizes.angles)
    }

    /// Bytes held.
    pub(super) fn byte_len(&self) -> usize {
        4 * (self.cos.capacity() + self.sin.capacity())
    }

    /// Of the positions, a row each, computed in float64.
    pub(super) fn fill(&mut self, rope: &Rope, positions: impl Iterator<Item = usize>) {
        self.half = rope.inverse_frequencies.len();
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for frequency in &rope.inverse_frequencies {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                self.cos.push(cos as f32);
                self.sin.push(sin as f32);
            }
        }
    }

    /// Turns the pairs `(i, i + D/2)` of each head in the row of token `t`.
    pub(super) fn rotate(&self, t: usize, row: &mut [f32]) {
        let angles = t * self.half..(t + 1) * self.half;
        let (cos, sin) = (&self.cos[angles.clone()], &self.sin[angles]);
        for head in row.chunks_exact_mut((2 * self.half).max(1)) {
            let (a, b) = head.split_at_mut(self.half);
            for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_each_pair_by_its_angle() {
        let rope = Rope { inverse_frequencies: vec![1.0, 0.01] };
        let mut angles = Angles::default();
        angles.fill(&rope, 5..7);
        let mut row = [1.0f32, 2.0, 3.0, 4.0, -1.0, 0.5, 0.0, 1.0];
        let before = row;
        angles.rotate(1, &mut row);
        for head in 0..2 {
            for (i, frequency) in rope.inverse_frequencies.iter().enumerate() {
                let (sin, cos) = (6.0 * frequency).sin_cos();
                let (a, b) = (f64::from(before[head * 4 + i]), f64::from(before[head * 4 + 2 + i]));
                assert!((f64::from(row[head * 4 + i]) - (a * cos - b * sin)).abs() < 1e-6);
                assert!((f64::from(row[head * 4 + 2 + i]) - (b * cos + a * sin)).abs() < 1e-6);
            }
        }
    }
}
