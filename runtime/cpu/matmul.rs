//! A weight matrix read from its file, row by row: projections over blocks of rows.
//!
//! Invariant: no weight, scale or zero point is copied or laid out anew when a model loads: what is read is the file.

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
    storage: Storage,
}

/// What the kernels of a matrix read.
pub(super) fn form(storage: &Storage, activations: Activations) -> Form {
    match (storage, activations) {
        (Storage::Dense(_), _) => Form::Plain,
        (Storage::Packed { scheme, .. }, Activations::Int8) => Form::Int(Order::of(scheme.bits)),
        (Storage::Packed { scheme: Scheme { bits: Bits::Int4, .. }, .. }, _) => Form::Halves,
        (Storage::Packed { .. }, _) => Form::Plain,
    }
}

impl Projection {
    /// Checks that scales are finite.
    pub(super) fn new(matrix: Matrix) -> Result<Self> {
        matrix.scales()?;
        Ok(Self { rows: matrix.rows, cols: matrix.cols, storage: matrix.storage })
    }

    /// What the kernels of this matrix read.
    pub(super) fn form(&self, activations: Activations) -> Form {
        form(&self.storage, activations)
    }

    /// Bytes of its tensors.
    pub(super) fn byte_len(&self) -> usize {
        self.storage.byte_len()
    }

    /// Row `row` as float32, for embeddings.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        match &self.storage {
            Storage::Dense(tensor) => widen(tensor, row * self.cols, out),
            Storage::Packed { scheme, words, .. } => {
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

    /// `out[r, t] = Σ_k w[r, k] x[t, k]` for the rows `rows` and the T tokens `of`; `out` is (rows, T).
    pub(super) fn project(
        &self,
        kernels: &Kernels,
        (input, of): (&Input, Range<usize>),
        form: Form,
        rows: Range<usize>,
        out: &mut [f32],
    ) {
        let tokens = of.len().max(1);
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
                            (kernels.int)(row, input.ints(order).from(of.start + start), out);
                        }
                        _ => {
                            let floats = input.floats(form == Form::Halves).from(of.start + start);
                            (kernels.float)(&row, floats, out);
                        }
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
            Storage::Dense(tensor) => {
                let bytes = bytes(tensor, self.cols * tensor.dtype.size());
                match tensor.dtype {
                    DType::F16 => Row::F16(bytes),
                    DType::BF16 => Row::BF16(bytes),
                    _ => Row::F32(bytes),
                }
            }
            Storage::Packed { scheme, words, .. } => {
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
    zero_groups: Vec<i32>,
}

impl Blocks {
    fn fill(&mut self, projection: &Projection, rows: Range<usize>) {
        let Storage::Packed { scheme, scales, zero_points, .. } = &projection.storage else { return };
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
        if let Some(zeros) = zero_points {
            read_zeros(scheme.bits, zeros.bytes(), rows, groups, &mut self.zero_groups);
            spread(&self.zero_groups, groups, per_group, blocks, self.stride, &mut self.zeros);
        }
    }
}

/// (rows, groups) zero points with the stored offset; in the file a word holds those of a few rows, lowest bits first.
fn read_zeros(bits: Bits, bytes: &[u8], rows: Range<usize>, groups: usize, out: &mut Vec<i32>) {
    let words = bytes.as_chunks::<4>().0;
    let (count, per_word) = (bits.count(), 32 / bits.count());
    let mask = (1u32 << count) - 1;
    out.resize(rows.len() * groups, 0);
    for (r, out) in rows.zip(out.chunks_exact_mut(groups.max(1))) {
        let (first, shift) = (r / per_word * groups, r % per_word * count);
        for (out, word) in out.iter_mut().zip(words.get(first..).unwrap_or_default()) {
            *out = (u32::from_le_bytes(*word) >> shift & mask) as i32;
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
