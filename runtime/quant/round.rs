//! Round-to-nearest compression: one row of weights becomes packed words, scales and zero points.
//!
//! A scale is rounded to the type that it will be stored in *before* the weights are divided by it, so that what a
//! reader multiplies with is what was divided by (mid-rise levels have a rule of their own). Invariant: finite weights in, finite scales out; a group of zeros
//! stays zero (in a mid-rise scheme by the scale 0).

use half::f16;

use super::pack::pack_row;
use super::{Bits, Scheme, mid_rise};

/// The type that scales are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// IEEE half: enough wherever all scales of the matrix are normal numbers of that type.
    F16,
    /// Float32: for the others.
    F32,
}

/// Smallest and largest magnitude of a normal f16.
const F16_NORMAL: std::ops::RangeInclusive<f32> = 6.103_515_6e-5..=65504.0;

/// Shrinking the range of a group clips its extreme and rounds all others finer; tried at int4, where it pays.
/// Weight error of the two checkpoints of the test data at int4 g32, relative: largest/7 9.5e-3 and 8.9e-3, the usual
/// 2·largest/15 9.0e-3 and 8.4e-3, extreme on -8 7.4e-3 and 7.0e-3, the best of all candidates here 6.9e-3 and 6.5e-3.
const SHRINK: [f32; 7] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.65];

impl ScaleType {
    /// The value that the stored scale has when it is read.
    pub(super) fn stored(self, scale: f32) -> f32 {
        match self {
            Self::F16 => f16::from_f32(scale).to_f32(),
            Self::F32 => scale,
        }
    }

    /// The type for a matrix whose groups were seen by `range`.
    pub fn for_range(scheme: Scheme, range: ScaleRange) -> Self {
        if scheme.bits.is_mid_rise() {
            return Self::holding(mid_rise::bounds(scheme.bits, range));
        }
        let offset = scheme.bits.offset() as f32;
        let steps = if scheme.symmetric { offset } else { 2.0 * offset - 1.0 };
        let shrink = if scheme.bits == Bits::Int4 { SHRINK[SHRINK.len() - 1] } else { 1.0 };
        // Every candidate lies between these two.
        let smallest = range.smallest / steps * shrink;
        Self::holding((smallest, range.largest / (offset - 1.0)))
    }

    /// The type for scales between these two.
    fn holding((smallest, largest): (f32, f32)) -> Self {
        let fits = largest == 0.0 || (F16_NORMAL.contains(&smallest) && F16_NORMAL.contains(&largest));
        if fits { Self::F16 } else { Self::F32 }
    }
}

/// The extremes of the largest magnitudes of groups, groups of zeros left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleRange {
    pub(super) smallest: f32,
    pub(super) largest: f32,
}

impl Default for ScaleRange {
    fn default() -> Self {
        Self { smallest: f32::INFINITY, largest: 0.0 }
    }
}

impl ScaleRange {
    /// The range over a row's groups of `group` weights.
    pub fn of_row(row: &[f32], group: usize) -> Self {
        let magnitudes = row.chunks(group.max(1)).map(|g| g.iter().fold(0.0f32, |m, w| m.max(w.abs())));
        magnitudes
            .filter(|m| *m > 0.0)
            .fold(Self::default(), |range, m| range.merge(Self { smallest: m, largest: m }))
    }

    /// The range over both.
    pub fn merge(self, other: Self) -> Self {
        Self { smallest: self.smallest.min(other.smallest), largest: self.largest.max(other.largest) }
    }
}

/// One compressed row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundedRow {
    /// The packed integers, [`Scheme::words`] of them.
    pub words: Vec<u32>,
    /// One scale a group, as it reads back from its stored type; negative ones are possible.
    pub scales: Vec<f32>,
    /// One zero point a group with the stored offset (`0..2^bits`); empty where the scheme is symmetric.
    pub zero_points: Vec<u8>,
    /// The sum of squared differences between the weights and what they became.
    pub squared_error: f64,
}

/// Rounds one row of finite weights; the scheme must [`Scheme::check`] for its length.
pub fn round_row(scheme: Scheme, scale_type: ScaleType, row: &[f32]) -> RoundedRow {
    let mut integers = vec![0; row.len()];
    let mut out = RoundedRow::default();
    let group = scheme.group_size(row.len());
    for (weights, q) in row.chunks(group).zip(integers.chunks_mut(group)) {
        if scheme.bits.is_mid_rise() {
            let (scale, error) = mid_rise::round_group(scheme.bits, scale_type, weights, q);
            out.scales.push(scale);
            out.squared_error += error;
            continue;
        }
        let (scale, zero) = match scheme.symmetric {
            true => (symmetric_scale(scheme.bits, scale_type, weights), scheme.bits.zero()),
            false => asymmetric_scale(scheme.bits, scale_type, weights),
        };
        for (w, q) in weights.iter().zip(q) {
            *q = (round(scheme.bits, scale, zero, *w) + zero) as u8;
        }
        out.squared_error += f64::from(error(scheme.bits, scale, zero, weights));
        out.scales.push(scale);
        if !scheme.symmetric {
            out.zero_points.push(zero as u8);
        }
    }
    pack_row(scheme.bits, &integers, &mut out.words);
    out
}

/// The level nearest to a weight, ties to even, as a distance from the zero point in scales.
#[inline]
pub(super) fn round(bits: Bits, scale: f32, zero: f32, weight: f32) -> f32 {
    // Adding and taking away 1.5 * 2^23 rounds to even like `round_ties_even`, which is a call per weight on x86-64
    // without SSE4.1; clamping first keeps the sum exact.
    const SHIFT: f32 = 12_582_912.0;
    let (lowest, highest) = (-zero, (2 * bits.offset() - 1) as f32 - zero);
    // Mid-rise levels lie at halves.
    let half = if bits.is_mid_rise() { 0.5 } else { 0.0 };
    let whole = (weight / scale - half).clamp(lowest - 1.0, highest + 1.0);
    ((whole + SHIFT) - SHIFT + half).clamp(lowest, highest)
}

/// The squared error of a group under a scale.
fn error(bits: Bits, scale: f32, zero: f32, weights: &[f32]) -> f32 {
    let off = |w: f32| round(bits, scale, zero, w) * scale - w;
    // Eight sums, so that the compiler may use wide registers; a fixed order, so that results repeat.
    let (wide, rest) = weights.as_chunks::<8>();
    let mut sums = [0.0f32; 8];
    for chunk in wide {
        for (sum, w) in sums.iter_mut().zip(chunk) {
            *sum += off(*w) * off(*w);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|w| off(*w) * off(*w)).sum::<f32>()
}

/// The scale of least squared error among a few. A two's-complement range has one more integer below zero than above,
/// so putting the extreme weight there, by a negative scale if it is positive, uses the range best; any reader just
/// multiplies.
fn symmetric_scale(bits: Bits, scale_type: ScaleType, weights: &[f32]) -> f32 {
    let extreme = weights.iter().fold(0.0f32, |m, w| if w.abs() > m.abs() { *w } else { m });
    let lowest = bits.offset() as f32;
    let whole = extreme.abs() / (lowest - 1.0);
    let shrinks = if bits == Bits::Int4 { &SHRINK[..] } else { &SHRINK[..1] };
    let candidates = shrinks.iter().map(|s| whole * s).chain([-extreme / lowest]);
    best(bits, scale_type, candidates.map(|scale| (scale, bits.zero())), weights, 1.0).0
}

/// A scale over the group's range, zero included, and the zero point that makes zero exact.
fn asymmetric_scale(bits: Bits, scale_type: ScaleType, weights: &[f32]) -> (f32, f32) {
    let (low, high) = weights.iter().fold((0.0f32, 0.0f32), |(l, h), w| (l.min(*w), h.max(*w)));
    let steps = 2 * bits.offset() - 1;
    // Halves first: the sum of two large magnitudes may overflow.
    let whole = high / steps as f32 - low / steps as f32;
    let shrinks = if bits == Bits::Int4 { &SHRINK[..] } else { &SHRINK[..1] };
    let candidates = shrinks.iter().map(|s| {
        let scale = scale_type.stored(whole * s);
        let zero = (-low * s / scale).round_ties_even().clamp(0.0, steps as f32);
        (scale, zero)
    });
    best(bits, scale_type, candidates, weights, 1.0)
}

/// The usable candidate of least squared error; the scale `none` for a group of zeros.
pub(super) fn best(
    bits: Bits,
    scale_type: ScaleType,
    candidates: impl Iterator<Item = (f32, f32)>,
    weights: &[f32],
    none: f32,
) -> (f32, f32) {
    let none = (none, bits.zero());
    let mut best = none;
    let mut least = f32::INFINITY;
    for (scale, zero) in candidates {
        let scale = scale_type.stored(scale);
        if scale == 0.0 || !scale.is_finite() {
            continue;
        }
        let error = error(bits, scale, zero, weights);
        // The first candidate wins where squares overflow, so that a group of huge weights keeps its scale.
        if error < least || (least == f32::INFINITY && best == none) {
            (best, least) = ((scale, zero), error);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::quant::{Group, pack::unpack};

    fn noise(seed: u64, len: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        // A sum of four is near enough to a bell.
        (0..len).map(|_| (next() + next() + next() + next()) * 0.1).collect()
    }

    fn read(scheme: Scheme, row: &RoundedRow, len: usize) -> Vec<f32> {
        let group = scheme.group_size(len);
        (0..len)
            .map(|k| {
                let zero = row.zero_points.get(k / group).map_or(scheme.bits.zero(), |z| f32::from(*z));
                (f32::from(unpack(scheme.bits, &row.words, k)) - zero) * row.scales[k / group]
            })
            .collect()
    }

    fn schemes() -> impl Iterator<Item = Scheme> {
        let groups = [Group::Size(32), Group::Size(64), Group::Channel];
        [Bits::Int2, Bits::Int3, Bits::Int4, Bits::Int8].into_iter().flat_map(move |bits| {
            groups
                .into_iter()
                .flat_map(move |group| [true, false].map(|symmetric| Scheme { bits, group, symmetric }))
                .filter(|scheme| scheme.check(192).is_ok())
        })
    }

    #[test]
    fn the_error_is_that_of_the_scheme() {
        for scheme in schemes() {
            let row = noise(7, 192);
            let back = read(scheme, &round_row(scheme, ScaleType::F16, &row), row.len());
            let error: f64 = row.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let power: f64 = row.iter().map(|a| f64::from(*a).powi(2)).sum();
            // Measured 5e-3..1.2e-2 and 1e-5..5e-5; a wrong offset, group or zero point gives 1e-1 and more.
            let bound = match scheme.bits {
                Bits::Int2 => 0.2,
                Bits::Int3 => 0.05,
                Bits::Int4 => 2e-2,
                Bits::Int8 => 1e-4,
            };
            assert!(error / power < bound, "{scheme}: {}", error / power);
        }
    }

    #[test]
    fn no_scale_is_worse_than_the_minmax_rule() {
        let scheme = Scheme { bits: Bits::Int4, group: Group::Size(32), symmetric: true };
        for seed in 0..50 {
            let row = noise(seed, 32);
            let largest = row.iter().fold(0.0f32, |m, w| m.max(w.abs()));
            let ours = error(scheme.bits, round_row(scheme, ScaleType::F32, &row).scales[0], 8.0, &row);
            assert!(ours <= error(scheme.bits, largest / 7.0, 8.0, &row), "seed {seed}");
        }
    }

    #[test]
    fn extremes_are_safe() {
        for scheme in schemes() {
            for value in [0.0, -0.0, 1e-42, -1e-42, 1e-30, 3e38, -3e38, 70000.0] {
                let mut row = vec![value; 64];
                row[63] = -value / 2.0;
                let range = ScaleRange::of_row(&row, scheme.group_size(64));
                let scale_type = ScaleType::for_range(scheme, range);
                let rounded = round_row(scheme, scale_type, &row);
                // Mid-rise levels have no zero: there a scale of 0 stands for a group of zeros.
                let zeros = scheme.bits.is_mid_rise() && value.abs() < 1e-41;
                assert!(
                    rounded.scales.iter().all(|s| s.is_finite() && (*s != 0.0 || zeros)),
                    "{scheme} {value}"
                );
                for (a, b) in row.iter().zip(read(scheme, &rounded, 64)) {
                    // Denormal scales have few digits left; such weights may become zero.
                    assert!((a - b).abs() <= value.abs() * 0.2 + 1e-40, "{scheme} {value}: {a} became {b}");
                }
            }
        }
    }

    #[test]
    fn small_scales_are_kept_in_f32() {
        let scheme = Scheme { bits: Bits::Int8, group: Group::Size(32), symmetric: true };
        let choose = |m: f32| ScaleType::for_range(scheme, ScaleRange::of_row(&[0.0, m, -m / 3.0], 3));
        assert_eq!(choose(0.0), ScaleType::F16);
        assert_eq!(choose(0.5), ScaleType::F16);
        assert_eq!(choose(1e-3), ScaleType::F32);
        assert_eq!(choose(1e9), ScaleType::F32);
    }
}
