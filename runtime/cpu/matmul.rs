//! A weight matrix read from its file, row by row: projections over blocks of rows.
//!
//! Invariant: no weight is copied; only zero points, which lie across rows in the file, are unpacked when a model loads.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::dot::{Kernels, PackedRow, Row, TILE};
use super::input::{Form, Input, Order};
use crate::device::Activations;
use crate::error::Result;
use crate::quant::activations::BLOCK;
use crate::quant::pack::unpack;
use crate::quant::{Bits, Scheme};
use crate::weights::{DType, Matrix, Storage, Tensor};

/// Rows that are walked once for each few tokens: their words stay in the second-level cache meanwhile.
const PANEL: usize = 16;
/// Tokens for which a row is unpacked at a time; their inputs stay in the first-level cache.
const TOKENS: usize = 4;

/// A matrix (R, K) ready to be multiplied with.
pub(super) struct Projection {
    /// R.
    pub(super) rows: usize,
    /// K.
    pub(super) cols: usize,
    storage: Stored,
}

enum Stored {
    Dense(Tensor),
    Packed {
        scheme: Scheme,
        words: Tensor,
        scales: Tensor,
        /// (R, groups).
        zeros: Option<Vec<u8>>,
    },
}

impl Projection {
    /// Checks that scales are finite.
    pub(super) fn new(matrix: &Matrix) -> Result<Self> {
        matrix.scales()?;
        let storage = match &matrix.storage {
            Storage::Dense(tensor) => Stored::Dense(tensor.clone()),
            Storage::Packed { scheme, words, scales, .. } => Stored::Packed {
                scheme: *scheme,
                words: words.clone(),
                scales: scales.clone(),
                zeros: matrix.zero_points(),
            },
        };
        Ok(Self { rows: matrix.rows, cols: matrix.cols, storage })
    }

    /// What the kernels of this matrix read.
    pub(super) fn form(&self, activations: Activations) -> Form {
        match (&self.storage, activations) {
            (Stored::Dense(_), _) => Form::Plain,
            (Stored::Packed { scheme, .. }, Activations::Int8) => Form::Int(Order::of(scheme.bits)),
            (Stored::Packed { scheme: Scheme { bits: Bits::Int4, .. }, .. }, _) => Form::Halves,
            (Stored::Packed { .. }, _) => Form::Plain,
        }
    }

    /// Bytes of the mapped tensors and of unpacked zero points.
    pub(super) fn byte_len(&self) -> usize {
        match &self.storage {
            Stored::Dense(tensor) => tensor.bytes().len(),
            Stored::Packed { words, scales, zeros, .. } => {
                words.bytes().len() + scales.bytes().len() + zeros.as_ref().map_or(0, Vec::len)
            }
        }
    }

    /// Row `row` as float32, for embeddings.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        match &self.storage {
            Stored::Dense(tensor) => widen(tensor, row * self.cols, out),
            Stored::Packed { scheme, words, .. } => {
                let mut blocks = Blocks::default();
                blocks.fill(self, row..row + 1);
                let words = &words.elements::<u32>();
                let words = &words[row * scheme.words(self.cols)..];
                for (k, out) in out.iter_mut().enumerate() {
                    let zero = blocks.zeros.get(k / BLOCK).copied().unwrap_or(scheme.bits.integer_zero());
                    let q = scheme.bits.multiplier() * i32::from(unpack(scheme.bits, words, k));
                    *out = (q - zero) as f32 * blocks.scales[k / BLOCK];
                }
            }
        }
    }

    /// `out[r, t] = Σ_k w[r, k] x[t, k]` for the rows `rows`; `out` is (rows, T).
    pub(super) fn project(
        &self,
        kernels: &Kernels,
        input: &Input,
        form: Form,
        rows: Range<usize>,
        out: &mut [f32],
    ) {
        let tokens = input.tokens().max(1);
        let mut blocks = Blocks::default();
        for (i, out) in out.chunks_mut(PANEL * tokens).enumerate() {
            let first = rows.start + i * PANEL;
            let count = out.len() / tokens;
            blocks.fill(self, first..first + count);
            for start in (0..tokens).step_by(TOKENS) {
                let end = tokens.min(start + TOKENS);
                for r in 0..count {
                    let row = self.view(&blocks, first + r, r);
                    let out = &mut out[r * tokens + start..r * tokens + end];
                    match (form, &row) {
                        (Form::Int(order), Row::Packed(row)) => {
                            (kernels.int)(row, input.ints(order).from(start), out);
                        }
                        _ => (kernels.float)(&row, input.floats(form == Form::Halves).from(start), out),
                    }
                }
            }
        }
    }

    /// Row `row` as it lies in the file, with its expanded scales at place `at` of the panel.
    fn view<'a>(&'a self, blocks: &'a Blocks, row: usize, at: usize) -> Row<'a> {
        let bytes = |tensor: &'a Tensor, len: usize| {
            tensor.bytes().get(row * len..(row + 1) * len).unwrap_or_default()
        };
        match &self.storage {
            Stored::Dense(tensor) => {
                let bytes = bytes(tensor, self.cols * tensor.dtype.size());
                match tensor.dtype {
                    DType::F16 => Row::F16(bytes),
                    DType::BF16 => Row::BF16(bytes),
                    _ => Row::F32(bytes),
                }
            }
            Stored::Packed { scheme, words, .. } => {
                let places = at * blocks.stride..(at + 1) * blocks.stride;
                Row::Packed(PackedRow {
                    bits: scheme.bits,
                    bytes: bytes(words, scheme.words(self.cols) * 4),
                    scales: &blocks.scales[places.clone()],
                    zeros: blocks.zeros.get(places).unwrap_or_default(),
                })
            }
        }
    }
}

/// Scales and zero points of a few rows, one for each block of 32 weights whatever the group size.
#[derive(Default)]
struct Blocks {
    /// (rows, stride), zeros after the last block; halved where kernels double the integers.
    scales: Vec<f32>,
    /// The same, or empty where the scheme is symmetric.
    zeros: Vec<i32>,
    /// Blocks of a row, up to a whole tile.
    stride: usize,
    groups: Vec<f32>,
}

impl Blocks {
    fn fill(&mut self, projection: &Projection, rows: Range<usize>) {
        let Stored::Packed { scheme, scales, zeros, .. } = &projection.storage else { return };
        let groups = scheme.groups(projection.cols);
        let blocks = projection.cols.div_ceil(BLOCK);
        let per_group = scheme.group_size(projection.cols).div_ceil(BLOCK);
        self.stride = blocks.next_multiple_of(TILE);
        self.groups.resize(rows.len() * groups, 0.0);
        widen(scales, rows.start * groups, &mut self.groups);
        if scheme.bits.is_mid_rise() {
            self.groups.iter_mut().for_each(|scale| *scale *= 0.5);
        }
        spread(&self.groups, groups, per_group, blocks, self.stride, &mut self.scales);
        if let Some(zeros) = zeros {
            let zeros: Vec<i32> =
                zeros[rows.start * groups..rows.end * groups].iter().map(|z| i32::from(*z)).collect();
            spread(&zeros, groups, per_group, blocks, self.stride, &mut self.zeros);
        }
    }
}

/// Repeats each row's group values for every block of the group.
fn spread<T: Copy + Default>(
    values: &[T],
    groups: usize,
    per_group: usize,
    blocks: usize,
    stride: usize,
    out: &mut Vec<T>,
) {
    out.clear();
    for row in values.chunks_exact(groups.max(1)) {
        let start = out.len();
        if per_group == 1 {
            out.extend_from_slice(row);
        } else {
            row.iter().for_each(|v| out.extend(std::iter::repeat_n(*v, per_group)));
        }
        out.truncate(start + blocks);
        out.resize(start + stride, T::default());
    }
}

/// Elements of a float tensor from `start` on, as float32.
pub(super) fn widen(tensor: &Tensor, start: usize, out: &mut [f32]) {
    let size = tensor.dtype.size();
    let bytes = tensor.bytes().get(start * size..(start + out.len()) * size).unwrap_or_default();
    match tensor.dtype {
        DType::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) if halves.len() == out.len() => halves.convert_to_f32_slice(out),
            _ => {
                for (b, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
                    *out = f16::from_le_bytes(*b).to_f32();
                }
            }
        },
        DType::BF16 => {
            for (b, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
                *out = bf16::from_le_bytes(*b).to_f32();
            }
        }
        _ => {
            for (b, out) in bytes.as_chunks::<4>().0.iter().zip(out) {
                *out = f32::from_le_bytes(*b);
            }
        }
    }
}
