//! Numbers that are the same everywhere, and how kernels store them.

use half::{bf16, f16};

use crate::error::Result;
use crate::kernels::BLOCK;
use crate::kernels::prepare::Order;
use crate::kernels::project::{MatrixKind, ScaleKind, TailKind, WeightKind};
use crate::quant::{Bits, Group, Scheme, activations::Int8Row};
use crate::weights::{DType, Matrix, Tensor};

/// How the values of a buffer are stored.
#[derive(Clone, Copy)]
pub(super) enum Form {
    F32,
    F16,
    U32,
    /// int8 with scales and sums, as `quantise_int8.wgsl` writes them.
    Rounded(Order),
}

/// The same numbers everywhere.
pub(super) struct Noise(pub(super) u32);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// In [-size, size), each exact in f16 where the size is a power of two.
    pub(super) fn values(&mut self, count: usize, size: f32) -> Vec<f32> {
        (0..count).map(|_| ((self.next() >> 21) as f32 / 1024.0 - 1.0) * size).collect()
    }

    fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.next()).collect()
    }
}

pub(super) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

fn f16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| f16::from_f32(*v).to_bits().to_le_bytes()).collect()
}

pub(super) fn tail_bytes(kind: TailKind, values: &[f32]) -> Vec<u8> {
    if kind == TailKind::F32 { f32_bytes(values) } else { f16_bytes(values) }
}

pub(super) fn cache_bytes(half: bool, values: &[f32]) -> Vec<u8> {
    if half { f16_bytes(values) } else { f32_bytes(values) }
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// A matrix as it lies on the device.
pub(super) struct Stored {
    /// Weights, scales, zero points.
    pub(super) bytes: [Vec<u8>; 3],
    /// (R, K).
    pub(super) values: Vec<f32>,
}

pub(super) fn stored(
    kind: MatrixKind,
    rows: usize,
    blocks: usize,
    group: usize,
    noise: &mut Noise,
) -> Result<Stored> {
    let cols = blocks * BLOCK;
    // Small, and no value below what f16 holds without denormals, which some GPUs flush.
    let size = 1.0 / 16.0;
    let none = || vec![0; 16];
    let ScaleKind::Stored { half, symmetric } = kind.scales else {
        let shape = [rows, cols];
        let values = noise.values(rows * cols, size);
        let tensor = match kind.weights {
            WeightKind::F16 => {
                let values: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
                Tensor::from_slice("w", DType::F16, &shape, &values)?
            }
            WeightKind::Bf16 => {
                let values: Vec<bf16> = values.iter().map(|v| bf16::from_f32(*v)).collect();
                Tensor::from_slice("w", DType::BF16, &shape, &values)?
            }
            _ => Tensor::from_f32("w", &shape, &values)?,
        };
        let values = tensor.to_f32()?;
        return Ok(Stored { bytes: [tensor.bytes().to_vec(), none(), none()], values });
    };
    let bits = match kind.weights {
        WeightKind::Int2 => Bits::Int2,
        WeightKind::Int3 => Bits::Int3,
        WeightKind::Int4 => Bits::Int4,
        _ => Bits::Int8,
    };
    let scheme = Scheme { bits, group: Group::Size(group * BLOCK), symmetric };
    let groups = scheme.groups(cols);
    let words = noise.words(rows * scheme.words(cols));
    let words = Tensor::from_slice("w", DType::I32, &[rows, scheme.words(cols)], &words)?;
    let scale = size / bits.offset() as f32;
    let scales: Vec<f32> = noise.values(rows * groups, 0.5).iter().map(|v| (1.0 + v) * scale).collect();
    let shape = [rows, groups];
    let scales = if half {
        let scales: Vec<f16> = scales.iter().map(|v| f16::from_f32(*v)).collect();
        Tensor::from_slice("s", DType::F16, &shape, &scales)?
    } else {
        Tensor::from_f32("s", &shape, &scales)?
    };
    let shape = [bits.words(rows), groups];
    let zeros = match symmetric {
        true => None,
        false => Some(Tensor::from_slice("z", DType::I32, &shape, &noise.words(shape[0] * groups))?),
    };
    let zero_bytes = zeros.as_ref().map_or_else(none, |zeros| zeros.bytes().to_vec());
    let bytes = [words.bytes().to_vec(), scales.bytes().to_vec(), zero_bytes];
    let values = Matrix::packed(rows, cols, scheme, words, scales, zeros)?.to_f32()?;
    Ok(Stored { bytes, values })
}

/// A place in each sixteen for each of its elements.
fn place(order: Order, i: usize) -> usize {
    match order {
        Order::Natural => i,
        Order::EvenOdd => i / 8 * 8 + i % 2 * 4 + i % 8 / 2,
        Order::Fourths => i % 4 * 4 + i / 4,
    }
}

/// Rows as int8 kernels read them, and their values.
pub(super) fn rounded(x: &[f32], order: Order) -> (Vec<u8>, Vec<f64>) {
    let row = Int8Row::quantise(x);
    let (mut bytes, mut seen) = (Vec::new(), Vec::new());
    for (block, values) in row.values.chunks(BLOCK).enumerate() {
        let mut ordered = [0; BLOCK];
        for (i, value) in values.iter().enumerate() {
            ordered[i / 16 * 16 + place(order, i % 16)] = *value as u8;
            seen.push(f64::from(*value) * f64::from(row.scales[block]));
        }
        bytes.extend(ordered);
        bytes.extend(row.scales[block].to_le_bytes());
        bytes.extend(row.sums[block].to_le_bytes());
        bytes.extend([0; 8]);
    }
    (bytes, seen)
}

/// A buffer's values; NaN for an int8 block whose sum is wrong.
pub(super) fn decode(form: Form, bytes: &[u8]) -> Vec<f64> {
    let float = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
    match form {
        Form::F32 => bytes.chunks_exact(4).map(float).collect(),
        Form::U32 => bytes.chunks_exact(4).map(|b| f64::from(word(b))).collect(),
        Form::F16 => {
            bytes.chunks_exact(2).map(|b| f64::from(f16::from_le_bytes([b[0], b[1]]).to_f32())).collect()
        }
        Form::Rounded(order) => {
            let mut values = Vec::new();
            for block in bytes.chunks_exact(BLOCK + 16) {
                let (q, rest) = block.split_at(BLOCK);
                let sum: i32 = q.iter().map(|q| i32::from(*q as i8)).sum();
                let scale = if sum as u32 == word(&rest[4..]) { float(rest) } else { f64::NAN };
                let at = |i: usize| f64::from(q[i / 16 * 16 + place(order, i % 16)] as i8) * scale;
                values.extend((0..BLOCK).map(at));
            }
            values
        }
    }
}
