//! RMS norm of one row.

/// `out = x / sqrt(mean(x²) + eps) * weight`, the mean in float64.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // Eight sums, so that additions need not wait for each other.
    let mut sums = [0.0f64; 8];
    let (chunks, rest) = x.as_chunks::<8>();
    for chunk in chunks {
        for (sum, v) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    let square: f64 = sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let factor = 1.0 / (square / x.len().max(1) as f64 + f64::from(eps)).sqrt();
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = *x * factor as f32 * w;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_formula() {
        for len in [1usize, 8, 33, 172] {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 19) as f32 - 9.0) * 0.3).collect();
            let weight: Vec<f32> = (0..len).map(|i| 1.0 + (i % 5) as f32 * 0.1).collect();
            let mut out = vec![0.0; len];
            rms_norm(&x, &weight, 1e-5, &mut out);
            let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / len as f64;
            for i in 0..len {
                let expected = f64::from(x[i]) / (mean + 1e-5).sqrt() * f64::from(weight[i]);
                assert!((f64::from(out[i]) - expected).abs() <= 1e-6, "{len} {i}");
            }
        }
    }
}
