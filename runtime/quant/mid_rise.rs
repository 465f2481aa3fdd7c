//! The scale of a group with mid-rise levels (int3 and int2).
//!
//! With so few levels the scale of least squared error makes the rounded weights shorter than the weights: what it
//! rounds off at random it takes from all of them, and every layer's output shrinks. So the integers are those of the
//! least-squares scale among a few, and the scale that is stored with them is the one whose rounded weights `s q` have
//! the projection `<s q, w> = <w, w>`: `s = <w, w> / <q, w>`. Measured on the shipped base (`models/base`, 16,384 tokens
//! of novels, groups of 32, perplexity 47.1 before): least squares 94 and 51.3 at two and three bits, with the error
//! weighted by the weight's magnitude 73 and 50.8, so corrected 68 and 50.3.

use super::Bits;
use super::grid::{Grid, best};
use super::round::{ScaleRange, ScaleType};

/// Clip factors: the outermost level as a part of the largest weight. The best for a normal group of 32 is two thirds
/// at two bits and nine tenths at three.
const CLIP: [f32; 15] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3];

/// The smallest and the largest scale that [`round_group`] makes of groups of this range.
pub(super) fn bounds(bits: Bits, range: ScaleRange) -> (f32, f32) {
    let whole = |magnitude: f32| magnitude / bits.zero();
    (whole(range.smallest) * CLIP[CLIP.len() - 1], 2.0 * whole(range.largest))
}

/// Rounds a group; returns the grid to be stored and the squared error. A group of zeros gets the scale 0, since no
/// level is zero.
pub(super) fn round_group(bits: Bits, scale_type: ScaleType, weights: &[f32], q: &mut [u8]) -> (Grid, f64) {
    let zero = bits.zero();
    let whole = weights.iter().fold(0.0f32, |m, w| m.max(w.abs())) / zero;
    let at = |scale: f32| Grid { bits, scale: scale_type.stored(scale), zero };
    let start = best(bits, 0.0, CLIP.iter().map(|clip| at(whole * clip)), |grid| grid.squared_error(weights));
    let scale = start.scale;
    if scale == 0.0 {
        return (start, weights.iter().map(|w| f64::from(*w).powi(2)).sum());
    }
    let (mut power, mut product) = (0.0, 0.0);
    for (w, q) in weights.iter().zip(q.iter_mut()) {
        let level = start.level(*w);
        *q = (level + zero) as u8;
        power += f64::from(*w).powi(2);
        product += f64::from(level * w);
    }
    // A level is at most twice as far from zero as its weight, and the outermost at most `whole` nearer: within bounds.
    let corrected = scale_type.stored(((power / product) as f32).clamp(scale, 2.0 * whole));
    let scale = if corrected.is_finite() { corrected } else { scale };
    let off = |(w, q): (&f32, &u8)| (f64::from(*q) - f64::from(zero)) * f64::from(scale) - f64::from(*w);
    (Grid { scale, ..start }, weights.iter().zip(q.iter()).map(|pair| off(pair).powi(2)).sum())
}
