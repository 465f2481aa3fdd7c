//! Scalar functions that std lacks: erf, the exact GELU, SiLU.

use std::f64::consts::PI;

/// The error function to float64 accuracy.
///
/// Below 2.5 the series of Abramowitz & Stegun 7.1.6, `2/√π · e^{-x²} Σ 2^n x^{2n+1} / (2n+1)!!`, whose terms are all
/// positive; above it one minus the continued fraction of erfc, 7.1.14.
pub(super) fn erf(x: f64) -> f64 {
    let a = x.abs();
    if a.is_nan() {
        return x;
    }
    let value = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / PI.sqrt() * (-a * a).exp() * sum
    } else if a < 6.0 {
        // erfc(x) √π e^{x²} = 1 / (x + (1/2) / (x + 1 / (x + (3/2) / (x + …)))), from the inside out.
        let tail = (1..=60).rev().fold(a, |inner, k| a + f64::from(k) / 2.0 / inner);
        1.0 - (-a * a).exp() / (PI.sqrt() * tail)
    } else {
        1.0
    };
    value.copysign(x)
}

/// Exact GELU, `x/2 · (1 + erf(x/√2))`.
pub(super) fn gelu(x: f32) -> f32 {
    let x = f64::from(x);
    (0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))) as f32
}

/// `x · sigmoid(x)`.
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_at_tabulated_points() {
        // As C's erf has them (Python 3 math.erf).
        for (x, expected) in [
            (0.0, 0.0),
            (1e-8, 1.128_379_167_095_512_5e-8),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.499, 0.999_590_864_244_255_4),
            (2.5, 0.999_593_047_982_555),
            (3.0, 0.999_977_909_503_001_4),
            (4.0, 0.999_999_984_582_742_1),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - expected).abs() <= 3e-16 + 1e-15 * expected, "{x}: {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(erf(f64::NAN).is_nan());
    }

    #[test]
    fn activations_at_the_ends() {
        assert_eq!((gelu(0.0), silu(0.0)), (0.0, 0.0));
        assert_eq!((gelu(50.0), silu(100.0)), (50.0, 100.0));
        assert!(gelu(-50.0).abs() < 1e-30 && silu(-100.0).abs() < 1e-30);
    }
}
