//! Eigenvectors of small symmetric matrices.

/// Eigenvalues, largest first, and their eigenvectors as rows, of a symmetric (size, size) matrix: cyclic Jacobi
/// rotations (Golub & Van Loan, Matrix Computations, 8.5).
pub fn symmetric_eigen(mut a: Vec<f64>, size: usize) -> (Vec<f64>, Vec<f64>) {
    /// More than any matrix needs: convergence is quadratic after the first few.
    const SWEEPS: usize = 30;
    let mut vectors = vec![0.0; size * size];
    (0..size).for_each(|i| vectors[i * size + i] = 1.0);
    for _ in 0..SWEEPS {
        let total: f64 = a.iter().map(|v| v * v).sum();
        let diagonal: f64 = (0..size).map(|i| a[i * size + i].powi(2)).sum();
        if total - diagonal <= 1e-28 * total {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                rotate(&mut a, &mut vectors, size, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..size).collect();
    order.sort_by(|i, j| a[j * size + j].total_cmp(&a[i * size + i]));
    let values = order.iter().map(|i| a[i * size + i]).collect();
    let rows = order.iter().flat_map(|i| vectors[i * size..(i + 1) * size].iter().copied()).collect();
    (values, rows)
}

/// Makes element (p, q) zero.
fn rotate(a: &mut [f64], vectors: &mut [f64], size: usize, p: usize, q: usize) {
    let off = a[p * size + q];
    if off == 0.0 {
        return;
    }
    let theta = (a[q * size + q] - a[p * size + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + theta.hypot(1.0));
    let c = 1.0 / t.hypot(1.0);
    let s = t * c;
    for k in 0..size {
        let (x, y) = (a[k * size + p], a[k * size + q]);
        (a[k * size + p], a[k * size + q]) = (c * x - s * y, s * x + c * y);
    }
    for matrix in [a, vectors] {
        let (before, after) = matrix.split_at_mut(q * size);
        for (x, y) in before[p * size..(p + 1) * size].iter_mut().zip(&mut after[..size]) {
            (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_diagonalise() {
        let size = 20;
        let a: Vec<f64> = (0..size * size)
            .map(|k| {
                let (i, j) = ((k / size).min(k % size), (k / size).max(k % size));
                ((i * 7 + j * 13) % 11) as f64 - 5.0
            })
            .collect();
        let (values, vectors) = symmetric_eigen(a.clone(), size);
        assert!(values.is_sorted_by(|a, b| a >= b));
        for (value, v) in values.iter().zip(vectors.chunks(size)) {
            for (row, x) in a.chunks(size).zip(v) {
                let product: f64 = row.iter().zip(v).map(|(a, b)| a * b).sum();
                assert!((product - value * x).abs() < 1e-10, "{product} {value} {x}");
            }
            assert!((v.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }
}
