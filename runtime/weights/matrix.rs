//! One weight matrix (R output rows, K inputs), dense or compressed, still in its file.

use rayon::prelude::*;

use super::tensor::Tensor;
use crate::error::{Error, Result};
use crate::quant::{Scheme, pack::unpack};

/// How a matrix is stored.
#[derive(Clone, Debug)]
pub enum Storage {
    /// (R, K) f32, f16 or bf16.
    Dense(Tensor),
    /// compressed-tensors `pack-quantized` or calora's extension of it; see [`crate::quant`].
    Packed {
        /// Bits, group, symmetry.
        scheme: Scheme,
        /// (R, words) I32.
        words: Tensor,
        /// (R, groups) f32, f16 or bf16.
        scales: Tensor,
        /// (ceil(R * bits / 32), groups) I32, packed along the rows; only where asymmetric.
        zero_points: Option<Tensor>,
    },
}

impl Storage {
    /// What it consists of.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (first, scales, zeros) = match self {
            Self::Dense(tensor) => (tensor, None, None),
            Self::Packed { words, scales, zero_points, .. } => (words, Some(scales), zero_points.as_ref()),
        };
        std::iter::once(first).chain(scales).chain(zeros)
    }

    /// Bytes of weights, scales and zero points in the file.
    pub fn byte_len(&self) -> usize {
        self.tensors().map(|tensor| tensor.bytes().len()).sum()
    }
}

/// A weight matrix.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// R, output channels.
    pub rows: usize,
    /// K, inputs.
    pub cols: usize,
    /// The bytes.
    pub storage: Storage,
}

impl Matrix {
    /// A dense matrix; refuses a tensor that is not 2-D or not of a float type.
    pub fn dense(tensor: Tensor) -> Result<Self> {
        let [rows, cols] = tensor.shape[..] else {
            return Err(Error::tensor(
                tensor.path(),
                &tensor.name,
                format!("has shape {:?}, expected two dimensions", tensor.shape),
            ));
        };
        tensor.to_f32_range(0..0)?;
        Ok(Self { rows, cols, storage: Storage::Dense(tensor) })
    }

    /// A compressed matrix of `rows` x `cols`; refuses tensors of other shapes or types.
    pub fn packed(
        rows: usize,
        cols: usize,
        scheme: Scheme,
        words: Tensor,
        scales: Tensor,
        zero_points: Option<Tensor>,
    ) -> Result<Self> {
        scheme.check(cols)?;
        words.expect_shape(&[rows, scheme.words(cols)])?;
        scales.expect_shape(&[rows, scheme.groups(cols)])?;
        scales.to_f32_range(0..0)?;
        let integer = |t: &Tensor| match t.dtype {
            super::DType::I32 => Ok(()),
            other => Err(Error::tensor(t.path(), &t.name, format!("is {other:?}, expected I32 words"))),
        };
        integer(&words)?;
        match (&zero_points, scheme.symmetric) {
            (Some(zeros), false) => {
                integer(zeros)?;
                zeros.expect_shape(&[scheme.bits.words(rows), scheme.groups(cols)])?;
            }
            (None, true) => {}
            (Some(zeros), true) => {
                return Err(Error::tensor(
                    zeros.path(),
                    &zeros.name,
                    "a symmetric scheme has no zero points",
                ));
            }
            (None, false) => {
                return Err(Error::tensor(
                    words.path(),
                    &words.name,
                    "an asymmetric scheme needs weight_zero_point",
                ));
            }
        }
        Ok(Self { rows, cols, storage: Storage::Packed { scheme, words, scales, zero_points } })
    }

    /// Bytes of weights, scales and zero points in the file.
    pub fn byte_len(&self) -> usize {
        self.storage.byte_len()
    }

    /// Gives the pages of its mapped tensors back to the system, which reads them again where they are touched; how many
    /// bytes of tensors that are. Nothing is lost, and private copies stay.
    pub fn release_pages(&self) -> u64 {
        self.storage.tensors().map(Tensor::release_pages).sum()
    }

    /// The tensor that names this matrix in error messages.
    pub fn tensor(&self) -> &Tensor {
        match &self.storage {
            Storage::Dense(tensor) => tensor,
            Storage::Packed { words, .. } => words,
        }
    }

    /// (R, groups) scales as float32; refuses NaN and infinities, which only a damaged file has.
    pub fn scales(&self) -> Result<Option<Vec<f32>>> {
        let Storage::Packed { scales, .. } = &self.storage else { return Ok(None) };
        let values = scales.to_f32()?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => {
                Err(Error::tensor(scales.path(), &scales.name, format!("element {at} is {}", values[at])))
            }
            None => Ok(Some(values)),
        }
    }

    /// (R, groups) zero points with the stored offset (`0..2^bits`), where the scheme has them.
    pub fn zero_points(&self) -> Option<Vec<u8>> {
        let Storage::Packed { scheme, zero_points: Some(zeros), .. } = &self.storage else { return None };
        let groups = scheme.groups(self.cols);
        let words = zeros.elements::<u32>();
        let mut column = vec![0; words.len() / groups.max(1)];
        let mut out = vec![0; self.rows * groups];
        for g in 0..groups {
            for (r, word) in column.iter_mut().enumerate() {
                *word = words[r * groups + g];
            }
            for row in 0..self.rows {
                out[row * groups + g] = unpack(scheme.bits, &column, row);
            }
        }
        Some(out)
    }

    /// The whole matrix as float32, (R, K): for tests, compression and small matrices, never in a step.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let (scheme, words) = match &self.storage {
            Storage::Dense(tensor) => return tensor.to_f32(),
            Storage::Packed { scheme, words, .. } => (*scheme, words.elements::<u32>()),
        };
        let scales = self.scales()?.unwrap_or_default();
        let zeros = self.zero_points();
        let (group, groups, per_row) =
            (scheme.group_size(self.cols), scheme.groups(self.cols), scheme.words(self.cols));
        let mut out = vec![0.0; self.rows * self.cols];
        out.par_chunks_mut(self.cols.max(1)).enumerate().for_each(|(row, out)| {
            let words = &words[row * per_row..(row + 1) * per_row];
            for (g, out) in out.chunks_mut(group).enumerate() {
                let at = row * groups + g;
                let zero = zeros.as_ref().map_or(scheme.bits.zero(), |z| f32::from(z[at]));
                for (k, out) in out.iter_mut().enumerate() {
                    *out = (f32::from(unpack(scheme.bits, words, g * group + k)) - zero) * scales[at];
                }
            }
        });
        Ok(out)
    }
}
