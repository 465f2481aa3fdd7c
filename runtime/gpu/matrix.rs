//! Base weights on the GPU: the file's layout, rows padded to whole blocks, split by rows under the binding limit.

use std::ops::Range;

use half::f16;

use super::context::{Context, PIECE, buffer_bytes};
use super::pipeline::Pipelines;
use crate::error::{Error, Result};
use crate::kernels::project::{MatrixKind, ScaleKind, WeightKind};
use crate::kernels::{BLOCK, Caps, MATRIX};
use crate::quant::Bits;
use crate::weights::{DType, Matrix, Storage, Tensor};

/// Rows of one part are a multiple of this, so that packed zero points and f16 scale pairs are not cut.
const ROW_STEP: usize = 8;

/// One matrix.
pub(super) struct GpuMatrix {
    pub(super) kind: MatrixKind,
    pub(super) cols: usize,
    /// Blocks of a row.
    pub(super) blocks: usize,
    /// Scales of a row.
    pub(super) groups: usize,
    /// Blocks that share a scale.
    pub(super) group_blocks: usize,
    pub(super) parts: Vec<Part>,
    pub(super) bytes: u64,
}

/// Consecutive rows behind one binding.
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    weights: wgpu::Buffer,
    scales: wgpu::Buffer,
    zeros: wgpu::Buffer,
}

/// How a matrix is going to lie on the GPU, from its header and its scales' precision.
pub(super) struct Layout {
    pub(super) kind: MatrixKind,
    /// Blocks of a row.
    blocks: usize,
    groups: usize,
    group_blocks: usize,
    /// Bytes of a row.
    padded: usize,
    /// Rows behind one binding.
    per_part: usize,
    rows: usize,
    /// Rows whose zero points share a word; 0 where there are none.
    zero_rows: usize,
}

impl Layout {
    /// `half`: whether f16 holds every scale.
    pub(super) fn new(caps: &Caps, matrix: &Matrix, half: bool) -> Result<Self> {
        let blocks = matrix.cols.div_ceil(BLOCK);
        let (kind, groups, group_blocks) = match &matrix.storage {
            Storage::Dense(tensor) => {
                let weights = match tensor.dtype {
                    DType::F32 => WeightKind::F32,
                    DType::F16 => WeightKind::F16,
                    DType::BF16 => WeightKind::Bf16,
                    other => {
                        let reason = format!("is {other:?}, expected a float type");
                        return Err(Error::tensor(tensor.path(), &tensor.name, reason));
                    }
                };
                (MatrixKind { weights, scales: ScaleKind::None }, 1, blocks)
            }
            Storage::Packed { scheme, .. } => {
                let weights = match scheme.bits {
                    Bits::Int2 => WeightKind::Int2,
                    Bits::Int3 => WeightKind::Int3,
                    Bits::Int4 => WeightKind::Int4,
                    Bits::Int8 => WeightKind::Int8,
                };
                let scales = ScaleKind::Stored { half, symmetric: scheme.symmetric };
                let group_blocks = scheme.group_size(matrix.cols).div_ceil(BLOCK);
                (MatrixKind { weights, scales }, scheme.groups(matrix.cols), group_blocks)
            }
        };
        let padded = blocks * bytes_per_block(kind.weights);
        let per_part = rows_per_part(caps, matrix.rows, padded.max(groups * 4), &matrix.tensor().name)?;
        let zero_rows = match &matrix.storage {
            Storage::Packed { scheme, zero_points: Some(_), .. } => 32 / scheme.bits.count(),
            _ => 0,
        };
        Ok(Self { kind, blocks, groups, group_blocks, padded, per_part, rows: matrix.rows, zero_rows })
    }

    /// The rows of each part.
    pub(super) fn parts(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, per_part) = (self.rows, self.per_part);
        (0..rows).step_by(per_part).map(move |first| first..(first + per_part).min(rows))
    }

    /// Bytes of all buffers.
    pub(super) fn bytes(&self) -> u64 {
        let of = |rows: Range<usize>| {
            let scales = match self.kind.scales {
                ScaleKind::None => 0,
                ScaleKind::Stored { half, .. } => rows.len() * self.groups * if half { 2 } else { 4 },
            };
            let zeros = match self.zero_rows {
                0 => 0,
                per => (rows.end.div_ceil(per) - rows.start / per) * self.groups * 4,
            };
            [rows.len() * self.padded, scales, zeros].map(|n| buffer_bytes(n as u64)).iter().sum::<u64>()
        };
        self.parts().map(of).sum()
    }
}

impl GpuMatrix {
    /// Copies a matrix from its file; `wide` scales are float32 even where f16 holds them.
    pub(super) fn upload(context: &Context, caps: &Caps, matrix: &Matrix, wide: bool) -> Result<Self> {
        let half = !wide && matrix.scales()?.unwrap_or_default().iter().all(|s| exact_in_f16(*s));
        let layout = Layout::new(caps, matrix, half)?;
        let Layout { kind, blocks, groups, group_blocks, padded, .. } = layout;
        let tensor = matrix.tensor();
        let name = tensor.name.to_string();
        let mut this =
            Self { kind, cols: matrix.cols, blocks, groups, group_blocks, parts: Vec::new(), bytes: 0 };
        for rows in layout.parts() {
            let weights = context.storage(&name, (rows.len() * padded) as u64)?;
            copy_rows(context, &weights, tensor, matrix.rows, rows.clone(), padded)?;
            let (scales, zeros) = scales(context, matrix, kind.scales, rows.clone(), groups)?;
            this.bytes += weights.size() + scales.size() + zeros.size();
            this.parts.push(Part { rows, weights, scales, zeros });
        }
        Ok(this)
    }

    /// Group 0 of each part, with its rows of the bias (or a placeholder).
    pub(super) fn bind(
        &self,
        context: &Context,
        pipelines: &mut Pipelines,
        bias: Option<&[f32]>,
    ) -> Result<Vec<wgpu::BindGroup>> {
        let none = context.storage("the placeholder of a bias", 16)?;
        self.parts
            .iter()
            .map(|part| {
                let bias = match bias.and_then(|b| b.get(part.rows.clone())) {
                    Some(values) => context.upload("a bias", bytemuck::cast_slice(values))?,
                    None => none.clone(),
                };
                pipelines.bind(context, MATRIX, &[&part.weights, &part.scales, &part.zeros, &bias])
            })
            .collect()
    }
}

const fn bytes_per_block(kind: WeightKind) -> usize {
    match kind {
        WeightKind::F32 => BLOCK * 4,
        WeightKind::F16 | WeightKind::Bf16 => BLOCK * 2,
        WeightKind::Int8 => BLOCK,
        WeightKind::Int4 => BLOCK / 2,
        WeightKind::Int3 => BLOCK * 3 / 8,
        WeightKind::Int2 => BLOCK / 4,
    }
}

fn rows_per_part(caps: &Caps, rows: usize, row_bytes: usize, name: &str) -> Result<usize> {
    let most = (caps.max_binding / row_bytes as u64) as usize;
    if rows <= most {
        return Ok(rows.max(1));
    }
    match most / ROW_STEP * ROW_STEP {
        0 => Err(Error::OutOfMemory {
            what: format!("{ROW_STEP} rows of {name}"),
            bytes: (ROW_STEP * row_bytes) as u64,
            reason: format!("one binding of this GPU holds {} bytes", caps.max_binding),
        }),
        step => Ok(step),
    }
}

/// A normal f16 (or zero): some GPUs flush the subnormal ones.
pub(super) fn exact_in_f16(value: f32) -> bool {
    let half = f16::from_f32(value);
    half.to_f32() == value && (half.is_normal() || value == 0.0)
}

/// Rows from the file to the start of a buffer, each padded with zeros to `padded` bytes.
fn copy_rows(
    context: &Context,
    buffer: &wgpu::Buffer,
    tensor: &Tensor,
    all_rows: usize,
    rows: Range<usize>,
    padded: usize,
) -> Result<()> {
    let bytes = tensor.bytes();
    let row_bytes = bytes.len() / all_rows.max(1);
    if row_bytes == padded {
        return context.write(&tensor.name, buffer, 0, &bytes[rows.start * padded..rows.end * padded]);
    }
    let per_piece = (PIECE / padded).max(1);
    let mut piece = Vec::with_capacity(per_piece.min(rows.len()) * padded);
    for first in rows.clone().step_by(per_piece) {
        piece.clear();
        for row in first..(first + per_piece).min(rows.end) {
            piece.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            piece.resize(piece.len() + padded - row_bytes, 0);
        }
        context.write(&tensor.name, buffer, ((first - rows.start) * padded) as u64, &piece)?;
    }
    Ok(())
}

/// Scales and zero points of some rows; placeholders where the matrix has none.
fn scales(
    context: &Context,
    matrix: &Matrix,
    kind: ScaleKind,
    rows: Range<usize>,
    groups: usize,
) -> Result<(wgpu::Buffer, wgpu::Buffer)> {
    let (ScaleKind::Stored { half, .. }, Storage::Packed { scheme, scales, zero_points, .. }) =
        (kind, &matrix.storage)
    else {
        return Ok((context.storage("no scales", 16)?, context.storage("no zero points", 16)?));
    };
    let values = scales.to_f32_range(rows.start * groups..rows.end * groups)?;
    let scales = if half {
        let halves: Vec<u16> = values.iter().map(|v| f16::from_f32(*v).to_bits()).collect();
        context.upload(&scales.name, bytemuck::cast_slice(&halves))?
    } else {
        context.upload(&scales.name, bytemuck::cast_slice(&values))?
    };
    let zeros = match zero_points {
        None => context.storage("no zero points", 16)?,
        Some(zeros) => {
            let per = 32 / scheme.bits.count();
            let words = rows.start / per * groups..rows.end.div_ceil(per) * groups;
            context.upload(&zeros.name, &zeros.bytes()[words.start * 4..words.end * 4])?
        }
    };
    Ok((scales, zeros))
}
