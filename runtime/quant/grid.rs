//! The levels that a group's weights may take, and the search for the scale that puts them best.

use super::round::ScaleType;
use super::{Bits, Scheme};

/// The levels of one group: `(q - zero) * scale` for stored integers `q` in `0..2^bits`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grid {
    /// The bits.
    pub bits: Bits,
    /// As it reads back from its stored type; 0 for a group of zeros in a mid-rise scheme, and negative ones are possible.
    pub scale: f32,
    /// What is taken from the integer: a whole number, or in a mid-rise scheme a half.
    pub zero: f32,
}

/// Shrinking the range of a group clips its extreme and rounds all others finer; tried at int4, where it pays.
/// Weight error of the two checkpoints of the test data at int4 g32, relative: largest/7 9.5e-3 and 8.9e-3, the usual
/// 2·largest/15 9.0e-3 and 8.4e-3, extreme on -8 7.4e-3 and 7.0e-3, the best of all candidates here 6.9e-3 and 6.5e-3.
const SHRINK: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.65];
/// The same for mid-rise levels, of which few clip far more: the best scale of a normal group of 32 puts the outermost
/// level at two thirds of the largest weight at two bits and at nine tenths at three. Refined by least squares.
const MID_RISE_SHRINK: [f32; 14] =
    [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.3];
/// Steps of least squares after the best of these.
const REFINEMENTS: usize = 3;
/// Candidates of the weighted search, evenly over the whole range: weights make the best scale hard to guess.
const CANDIDATES: usize = 24;

/// The smallest and the largest scale that a search gives, of the largest magnitude of a group.
pub(super) fn scale_bounds(scheme: Scheme) -> (f32, f32) {
    if scheme.bits.is_mid_rise() {
        let outermost = scheme.bits.zero();
        return (MID_RISE_SHRINK[MID_RISE_SHRINK.len() - 1] / outermost, 1.0 / outermost);
    }
    let offset = scheme.bits.offset() as f32;
    let steps = if scheme.symmetric { offset } else { 2.0 * offset - 1.0 };
    (SHRINK[SHRINK.len() - 1] / steps, 1.0 / (offset - 1.0))
}

impl Grid {
    /// The stored integer of the level nearest to a weight, ties to even.
    #[inline]
    pub fn nearest(self, weight: f32) -> u8 {
        // A scale of 0 stands for a group of zeros, whatever its integers are.
        if self.scale == 0.0 { 0 } else { (self.level(weight) + self.zero) as u8 }
    }

    /// The weight that a stored integer stands for.
    #[inline]
    pub fn value(self, integer: u8) -> f32 {
        (f32::from(integer) - self.zero) * self.scale
    }

    /// The nearest level in scales from zero.
    #[inline]
    pub(super) fn level(self, weight: f32) -> f32 {
        // Adding and taking away 1.5 * 2^23 rounds to even like `round_ties_even`, which is a call per weight on x86-64
        // without SSE4.1; clamping first keeps the sum exact.
        const SHIFT: f32 = 12_582_912.0;
        let (lowest, highest) = (-self.zero, (2 * self.bits.offset() - 1) as f32 - self.zero);
        // Mid-rise levels lie at halves.
        let half = if self.bits.is_mid_rise() { 0.5 } else { 0.0 };
        let whole = (weight / self.scale - half).clamp(lowest - 1.0, highest + 1.0);
        ((whole + SHIFT) - SHIFT + half).clamp(lowest, highest)
    }

    /// The sum of squared errors over a group.
    pub fn squared_error(self, weights: &[f32]) -> f32 {
        if self.scale == 0.0 {
            return weights.iter().map(|w| w * w).sum();
        }
        sum(weights, weights, |w, _| (self.level(w) * self.scale - w).powi(2))
    }

    /// The same, each square times its weight's importance.
    fn weighted_error(self, weights: &[f32], importance: &[f32]) -> f32 {
        sum(weights, importance, |w, i| i * (self.level(w) * self.scale - w).powi(2))
    }

    /// The scale that fits best, by weighted least squares, the integers that this grid gives.
    fn refined(self, weights: &[f32], importance: impl Fn(usize) -> f32) -> f32 {
        let (mut product, mut power) = (0.0, 0.0);
        for (k, w) in weights.iter().enumerate() {
            let (level, importance) = (self.level(*w), importance(k));
            product += importance * level * w;
            power += importance * level * level;
        }
        product / power
    }
}

/// A sum over pairs in eight parts, so that the compiler may use wide registers; a fixed order, so that results repeat.
#[inline]
fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let ((wide_a, rest_a), (wide_b, rest_b)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f32; 8];
    for (a, b) in wide_a.iter().zip(wide_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += term(*a, *b);
        }
    }
    sums.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(a, b)| term(*a, *b)).sum::<f32>()
}

/// The grid of least squared error among a few; mid-rise schemes have a rule of their own ([`super::round::round_row`]).
pub fn search(scheme: Scheme, scale_type: ScaleType, weights: &[f32]) -> Grid {
    let bits = scheme.bits;
    let error = |grid: Grid| grid.squared_error(weights);
    if !scheme.symmetric {
        return best(bits, 1.0, asymmetric(bits, scale_type, weights), error);
    }
    let extreme = extreme(weights);
    let at = |scale: f32| Grid { bits, scale: scale_type.stored(scale), zero: bits.zero() };
    // A two's-complement range has one more integer below zero than above, so putting the extreme weight there, by a
    // negative scale if it is positive, uses the range best; any reader just multiplies.
    let lowest = bits.offset() as f32;
    let whole = extreme.abs() / (lowest - 1.0);
    let shrinks = if bits == Bits::Int4 { &SHRINK[..] } else { &SHRINK[..1] };
    let candidates = shrinks.iter().map(|s| whole * s).chain([-extreme / lowest]);
    best(bits, 1.0, candidates.map(at), error)
}

/// The grid of least squared error, each square times its weight's `importance` (one for each weight, none negative), over
/// the whole range of scales.
pub fn weighted_search(scheme: Scheme, scale_type: ScaleType, weights: &[f32], importance: &[f32]) -> Grid {
    let bits = scheme.bits;
    let error = |grid: Grid| grid.weighted_error(weights, importance);
    if !scheme.symmetric {
        return best(bits, 1.0, asymmetric(bits, scale_type, weights), error);
    }
    let extreme = extreme(weights);
    let (smallest, largest) = scale_bounds(scheme);
    let step = (largest - smallest) / (CANDIDATES - 1) as f32;
    // The largest first: it wins where squares overflow.
    let scales = (0..CANDIDATES).map(|i| extreme.abs() * (largest - i as f32 * step));
    let signs = if bits.is_mid_rise() { &[1.0][..] } else { &[1.0, -1.0] };
    let candidates = scales.flat_map(|scale| signs.iter().map(move |sign| scale * sign));
    let candidates =
        candidates.map(|scale| Grid { bits, scale: scale_type.stored(scale), zero: bits.zero() });
    let none = if bits.is_mid_rise() { 0.0 } else { 1.0 };
    let start = best(bits, none, candidates, error);
    refine(scheme, scale_type, extreme, start, |grid| grid.refined(weights, |k| importance[k]), error)
}

/// The weight of largest magnitude.
fn extreme(weights: &[f32]) -> f32 {
    weights.iter().fold(0.0f32, |m, w| if w.abs() > m.abs() { *w } else { m })
}

/// Least squares on the scale and rounding by turns, as long as that helps, within the range of scales.
fn refine(
    scheme: Scheme,
    scale_type: ScaleType,
    extreme: f32,
    mut grid: Grid,
    fit: impl Fn(Grid) -> f32,
    error: impl Fn(Grid) -> f32,
) -> Grid {
    if extreme == 0.0 {
        return grid;
    }
    let (smallest, largest) = scale_bounds(scheme);
    let mut least = error(grid);
    for _ in 0..REFINEMENTS {
        let fitted = fit(grid);
        let size = fitted.abs().clamp(extreme.abs() * smallest, extreme.abs() * largest);
        let scale = scale_type.stored(size.copysign(fitted));
        let refined = Grid { scale, ..grid };
        if scale == 0.0 || !scale.is_finite() {
            break;
        }
        let error = error(refined);
        if error.is_nan() || error >= least {
            break;
        }
        (grid, least) = (refined, error);
    }
    grid
}

/// Grids over the group's range, zero included, with the zero point that makes zero exact.
fn asymmetric(bits: Bits, scale_type: ScaleType, weights: &[f32]) -> impl Iterator<Item = Grid> {
    let (low, high) = weights.iter().fold((0.0f32, 0.0f32), |(l, h), w| (l.min(*w), h.max(*w)));
    let steps = (2 * bits.offset() - 1) as f32;
    // Halves first: the sum of two large magnitudes may overflow.
    let whole = high / steps - low / steps;
    let shrinks = if bits == Bits::Int4 { &SHRINK[..] } else { &SHRINK[..1] };
    shrinks.iter().map(move |s| {
        let scale = scale_type.stored(whole * s);
        Grid { bits, scale, zero: (-low * s / scale).round_ties_even().clamp(0.0, steps) }
    })
}

/// The usable candidate of least error; the scale `none` for a group of zeros.
pub(super) fn best(
    bits: Bits,
    none: f32,
    candidates: impl Iterator<Item = Grid>,
    error: impl Fn(Grid) -> f32,
) -> Grid {
    let mut best = None;
    let mut least = f32::INFINITY;
    for grid in candidates {
        if grid.scale == 0.0 || !grid.scale.is_finite() {
            continue;
        }
        let error = error(grid);
        // The first candidate wins where squares overflow, so that a group of huge weights keeps its scale.
        if error < least || best.is_none() {
            (best, least) = (Some(grid), error);
        }
    }
    best.unwrap_or(Grid { bits, scale: none, zero: bits.zero() })
}
