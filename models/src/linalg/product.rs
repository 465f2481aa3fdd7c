//! Products of dense matrices, split over rayon's threads.

use rayon::prelude::*;

/// Rows of a result that one job computes, at least: below it, packing the other factor costs more than the products.
const ROWS: usize = 64;

/// A number type with a product of its own.
pub trait Element: Copy + Send + Sync + Default {
    /// `c = a b + beta c`, every matrix by its pointer and its strides of rows and columns.
    ///
    /// # Safety
    /// Every element that the sizes and strides reach must be readable, those of `c` writable and in nobody else's use.
    #[expect(clippy::too_many_arguments, reason = "the three matrices of a product")]
    unsafe fn gemm(
        size: [usize; 3],
        a: *const Self,
        a_strides: [isize; 2],
        b: *const Self,
        b_strides: [isize; 2],
        beta: bool,
        c: *mut Self,
        c_strides: [isize; 2],
    );
}

macro_rules! element {
    ($type:ty, $gemm:path) => {
        impl Element for $type {
            unsafe fn gemm(
                [m, k, n]: [usize; 3],
                a: *const Self,
                [ar, ac]: [isize; 2],
                b: *const Self,
                [br, bc]: [isize; 2],
                beta: bool,
                c: *mut Self,
                [cr, cc]: [isize; 2],
            ) {
                let beta = if beta { 1.0 } else { 0.0 };
                // SAFETY: the caller vouches for every element.
                unsafe { $gemm(m, k, n, 1.0, a, ar, ac, b, br, bc, beta, c, cr, cc) }
            }
        }
    };
}
element!(f32, matrixmultiply::sgemm);
element!(f64, matrixmultiply::dgemm);

/// A matrix as somebody's values and how to walk them.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    values: &'a [T],
    rows: usize,
    cols: usize,
    strides: [usize; 2],
}

impl<'a, T> View<'a, T> {
    /// `rows` rows of `cols` values, each row `stride` values after the one before.
    ///
    /// # Panics
    /// Where `values` is too short, as slicing it would.
    pub fn new(values: &'a [T], rows: usize, cols: usize, stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        Self { values: &values[..needed], rows, cols, strides: [stride, 1] }
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let [r, c] = self.strides;
        Self { rows: self.cols, cols: self.rows, strides: [c, r], ..self }
    }

    fn signed_strides(&self) -> [isize; 2] {
        self.strides.map(|s| s as isize)
    }

    /// From a row on.
    fn row_start(&self, row: usize) -> *const T {
        self.values[row * self.strides[0]..].as_ptr()
    }
}

/// `out (+)= a b`; `out` has rows of `b.cols` values, each `stride` values after the one before, and what stands between
/// them is left alone.
///
/// # Panics
/// Where shapes do not agree.
pub fn multiply<T: Element>(a: View<'_, T>, b: View<'_, T>, add: bool, out: &mut [T], stride: usize) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert!(b.rows == k && stride >= n, "a product of {m}x{k} and {}x{n} into rows of {stride}", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    let out = &mut out[..(m - 1) * stride + n];
    let jobs = rayon::current_num_threads().min(m.div_ceil(ROWS));
    let rows = m.div_ceil(jobs);
    out.par_chunks_mut(rows * stride).enumerate().for_each(|(i, out)| {
        let size = [(out.len() + stride - n) / stride, k, n];
        let (c, c_strides) = (out.as_mut_ptr(), [stride as isize, 1]);
        let left = if k == 0 { a.values.as_ptr() } else { a.row_start(i * rows) };
        // SAFETY: `View::new` checked the factors; this chunk of `out` is this job's own and ends after its last row.
        unsafe {
            T::gemm(size, left, a.signed_strides(), b.values.as_ptr(), b.signed_strides(), add, c, c_strides);
        }
    });
}

/// Adds `x^T x` for (T, K) rows `x` to the upper triangle of `out` (K, K); parts of the lower one become whatever.
pub fn add_gram<T: Element>(x: View<'_, T>, out: &mut [T]) {
    /// Columns of a job: a triangle's waste against a product's overhead.
    const BLOCK: usize = 128;
    let size = x.cols;
    if size == 0 || x.rows == 0 {
        return;
    }
    out[..size * size].par_chunks_mut(BLOCK * size).enumerate().for_each(|(i, out)| {
        let first = i * BLOCK;
        let from = View { values: &x.values[first * x.strides[1]..], cols: size - first, ..x };
        let left = View { cols: from.cols.min(BLOCK), ..from }.transposed();
        let sizes = [left.rows, left.cols, from.cols];
        let out = &mut out[first..];
        let (a, b, c) = (left.values.as_ptr(), from.values.as_ptr(), out.as_mut_ptr());
        // SAFETY: both factors are parts of the checked view; `out` holds this job's rows from the diagonal on.
        unsafe {
            T::gemm(sizes, a, left.signed_strides(), b, from.signed_strides(), true, c, [size as isize, 1]);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 37 + seed * 11) % 23) as f64 - 11.0).collect()
    }

    #[test]
    fn products_of_any_shape_and_stride() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 2), (130, 17, 9), (65, 64, 70), (4, 0, 3), (0, 3, 3)] {
            let (a, b) = (values(m * (k + 2), 1), values(n * k, 2));
            let stride = n + 3;
            let mut out = vec![0.5; m * stride];
            let left = View::new(&a, m, k, k + 2);
            multiply(left, View::new(&b, n, k, k).transposed(), true, &mut out, stride);
            for i in 0..m {
                for j in 0..stride {
                    let sum: f64 = match j < n {
                        true => (0..k).map(|l| a[i * (k + 2) + l] * b[j * k + l]).sum(),
                        false => 0.0,
                    };
                    assert_eq!(out[i * stride + j], 0.5 + sum, "{m} {k} {n}: {i} {j}");
                }
            }
        }
    }

    #[test]
    fn gram_matrices_in_their_upper_triangle() {
        for (tokens, size) in [(1, 1), (7, 5), (40, 300)] {
            let x = values(tokens * (size + 1), 3);
            let mut out = vec![1.0; size * size];
            add_gram(View::new(&x, tokens, size, size + 1), &mut out);
            for i in 0..size {
                for j in i..size {
                    let sum: f64 = x.chunks(size + 1).map(|row| row[i] * row[j]).sum();
                    assert_eq!(out[i * size + j], 1.0 + sum);
                }
            }
        }
    }
}
