//! Dense products over threads and what is built from them: Gram matrices, Cholesky, orthonormal rows, eigenvectors.
//!
//! Row-major throughout. Only what calibration, GPTQ and residual factors need; wide matrices are float32, and whatever
//! decides accuracy (factorisations, inner products of bases) float64.

mod cholesky;
mod eigen;
mod product;

pub use cholesky::cholesky;
pub use eigen::symmetric_eigen;
pub use product::{Element, View, add_gram, multiply};

/// Makes the rows of a (count, len) block orthonormal by Gram-Schmidt, twice over; a row that depends on those before it
/// becomes zero.
pub fn orthonormalise(block: &mut [f32], len: usize) {
    let count = block.len().checked_div(len).unwrap_or(0);
    for i in 0..count {
        let (before, rest) = block.split_at_mut(i * len);
        let row = &mut rest[..len];
        let start = dot(row, row).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(len) {
                let share = dot(other, row) as f32;
                row.iter_mut().zip(other).for_each(|(r, o)| *r -= share * o);
            }
        }
        let norm = dot(row, row).sqrt();
        // Below float32's rounding of what the row was, only noise is left.
        let scale = if norm > 1e-6 * start { (1.0 / norm) as f32 } else { 0.0 };
        row.iter_mut().for_each(|r| *r *= scale);
    }
}

/// The inner product in float64; eight sums, so that the compiler may use wide registers.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    let (wide_a, rest_a) = a.as_chunks::<8>();
    let (wide_b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for (a, b) in wide_a.iter().zip(wide_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_orthonormal_and_dependent_ones_zero() {
        let mut block = vec![3.0, 4.0, 0.0, 6.0, 8.0, 0.0, 1.0, 1.0, 1.0];
        orthonormalise(&mut block, 3);
        let (a, b, c) = (&block[..3], &block[3..6], &block[6..]);
        assert!((dot(a, a) - 1.0).abs() < 1e-6 && (dot(c, c) - 1.0).abs() < 1e-6);
        assert!(dot(a, c).abs() < 1e-6);
        assert_eq!(b, [0.0; 3]);
    }
}
