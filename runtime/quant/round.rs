//! One row of weights as packed words, scales and zero points; round-to-nearest compression.
//!
//! A scale is rounded to the type that it will be stored in *before* the weights are divided by it, so that what a
//! reader multiplies with is what was divided by. Invariant: finite weights in, finite scales out; a group of zeros
//! stays zero (in a mid-rise scheme by the scale 0).

use half::f16;

use super::Scheme;
use super::grid::{self, Grid};
use super::mid_rise;
use super::pack::pack_row;

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
        // Every candidate of the search lies between these two.
        let (smallest, largest) = grid::scale_bounds(scheme);
        Self::holding((range.smallest * smallest, range.largest * largest))
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

impl RoundedRow {
    /// A row from its stored integers and the grids of its groups; `squared_error` is the caller's.
    pub fn new(scheme: Scheme, integers: &[u8], grids: &[Grid], squared_error: f64) -> Self {
        let mut words = Vec::with_capacity(scheme.words(integers.len()));
        pack_row(scheme.bits, integers, &mut words);
        let zeros = grids.iter().filter(|_| !scheme.symmetric).map(|grid| grid.zero as u8);
        let (scales, zero_points) = (grids.iter().map(|grid| grid.scale).collect(), zeros.collect());
        Self { words, scales, zero_points, squared_error }
    }
}

/// Rounds one row of finite weights to the nearest levels; the scheme must [`Scheme::check`] for its length.
pub fn round_row(scheme: Scheme, scale_type: ScaleType, row: &[f32]) -> RoundedRow {
    let mut integers = vec![0; row.len()];
    let (mut grids, mut squared_error) = (Vec::new(), 0.0);
    let group = scheme.group_size(row.len());
    for (weights, q) in row.chunks(group).zip(integers.chunks_mut(group)) {
        if scheme.bits.is_mid_rise() {
            let (grid, error) = mid_rise::round_group(scheme.bits, scale_type, weights, q);
            squared_error += error;
            grids.push(grid);
            continue;
        }
        let grid = grid::search(scheme, scale_type, weights);
        q.iter_mut().zip(weights).for_each(|(q, w)| *q = grid.nearest(*w));
        squared_error += f64::from(grid.squared_error(weights));
        grids.push(grid);
    }
    RoundedRow::new(scheme, &integers, &grids, squared_error)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::quant::{Bits, Group, pack::unpack};

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
            let rounded = round_row(scheme, ScaleType::F16, &row);
            let back = read(scheme, &rounded, row.len());
            let error: f64 = row.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let power: f64 = row.iter().map(|a| f64::from(*a).powi(2)).sum();
            assert!((rounded.squared_error / error - 1.0).abs() < 1e-4, "{scheme}: {error}");
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
            let ours = grid::search(scheme, ScaleType::F32, &row).squared_error(&row);
            let minmax = Grid { bits: Bits::Int4, scale: largest / 7.0, zero: 8.0 };
            assert!(ours <= minmax.squared_error(&row), "seed {seed}");
        }
    }

    #[test]
    fn importance_moves_the_scale() {
        let one = noise(3, 32);
        for scheme in schemes().filter(|s| s.symmetric && s.bits != Bits::Int8) {
            // Only one weight counts: it is met as well as the type of scales allows.
            let largest = (0..32).max_by(|a, b| one[*a].abs().total_cmp(&one[*b].abs())).unwrap();
            let mut importance = [0.0; 32];
            importance[largest] = 1.0;
            let grid = grid::weighted_search(scheme, ScaleType::F32, &one, &importance);
            let met = grid.value(grid.nearest(one[largest]));
            assert!((met / one[largest] - 1.0).abs() < 1e-3, "{scheme}: {} became {met}", one[largest]);
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
