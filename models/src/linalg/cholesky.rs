//! Cholesky factors.

use super::product::{View, multiply};

/// Columns factored at a time; everything else is products.
const BLOCK: usize = 64;

/// Replaces a symmetric positive definite (size, size) matrix, of which the lower triangle is read, by the lower factor
/// `L` of `A = L L^T`, zeros above the diagonal. `Err` holds the first column at which it is not positive definite.
pub fn cholesky(a: &mut [f64], size: usize) -> Result<(), usize> {
    for start in (0..size).step_by(BLOCK) {
        let end = (start + BLOCK).min(size);
        let width = end - start;
        // What the columns before take away: A[start.., start..end] -= L[start.., ..start] L[start..end, ..start]^T.
        let rows = size - start;
        let mut panel = vec![0.0; rows * width];
        {
            let before = View::new(&a[start * size..], rows, start, size);
            let diagonal = View::new(&a[start * size..], width, start, size);
            multiply(before, diagonal.transposed(), false, &mut panel, width);
        }
        for (i, row) in panel.chunks_exact_mut(width).enumerate() {
            let own = &a[(start + i) * size + start..][..width];
            row.iter_mut().zip(own).for_each(|(p, a)| *p = a - *p);
        }
        // The diagonal block by itself, then the rows below it by substitution.
        for i in 0..rows {
            let (done, row) = panel.split_at_mut(i * width);
            let row = &mut row[..width];
            for j in 0..width.min(i + 1) {
                let other = if j < i { &done[j * width..][..width] } else { &*row };
                let sum: f64 = (0..j).map(|k| row[k] * other[k]).sum();
                let left = row[j] - sum;
                if j == i {
                    if !(left > 0.0 && left.is_finite()) {
                        return Err(start + i);
                    }
                    row[j] = left.sqrt();
                } else {
                    row[j] = left / done[j * width + j];
                }
            }
            a[(start + i) * size + start..][..width].copy_from_slice(row);
        }
        for i in 0..width {
            a[(start + i) * size + start + i + 1..(start + i + 1) * size].fill(0.0);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::linalg::add_gram;

    #[test]
    fn factors_multiply_to_the_matrix() {
        for size in [1usize, 2, 63, 64, 65, 200] {
            let rows: Vec<f64> =
                (0..2 * size * size).map(|i| ((i * i + 7 * i) % 101) as f64 / 50.0 - 1.0).collect();
            let mut a = vec![0.0; size * size];
            add_gram(View::new(&rows, 2 * size, size, size), &mut a);
            for i in 0..size {
                a[i * size + i] += 0.1;
                for j in 0..i {
                    a[i * size + j] = a[j * size + i];
                }
            }
            let mut l = a.clone();
            cholesky(&mut l, size).unwrap();
            let mut back = vec![0.0; size * size];
            let view = View::new(&l, size, size, size);
            multiply(view, view.transposed(), false, &mut back, size);
            let worst = a.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-11 * size as f64, "{size}: {worst}");
            assert!((0..size).all(|i| l[i * size + i + 1..(i + 1) * size].iter().all(|v| *v == 0.0)));
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_named() {
        let mut a = vec![4.0, 0.0, 0.0, 2.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert_eq!(cholesky(&mut a, 3), Err(1));
        assert_eq!(cholesky(&mut [f64::NAN], 1), Err(0));
    }
}
