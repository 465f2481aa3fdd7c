//! Activations rounded to int8 in blocks of 32, the input of the integer kernels on both devices.
//!
//! `x[k] ≈ q[k] * scale[k / 32]` with `scale = max |x| / 127` over the block and ties rounded to even, as WGSL's
//! `round` does. A row is padded with zeros to whole blocks.

/// Values that share one activation scale.
pub const BLOCK: usize = 32;

/// One row of activations as int8.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Int8Row {
    /// (K padded to blocks), -127..=127.
    pub values: Vec<i8>,
    /// One scale a block.
    pub scales: Vec<f32>,
    /// The sum of the block's values: what a zero point is multiplied with.
    pub sums: Vec<i32>,
}

impl Int8Row {
    /// Rounds a row.
    pub fn quantise(x: &[f32]) -> Self {
        let mut row = Self::default();
        row.assign(x);
        row
    }

    /// Rounds a row into this one's memory.
    pub fn assign(&mut self, x: &[f32]) {
        let blocks = x.len().div_ceil(BLOCK);
        self.values.clear();
        self.values.resize(blocks * BLOCK, 0);
        self.scales.clear();
        self.sums.clear();
        for (block, out) in x.chunks(BLOCK).zip(self.values.chunks_mut(BLOCK)) {
            let largest = block.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let scale = largest / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            let mut sum = 0;
            for (v, q) in block.iter().zip(out) {
                *q = (v * inverse).round_ties_even() as i8;
                sum += i32::from(*q);
            }
            self.scales.push(scale);
            self.sums.push(sum);
        }
    }
}
