//! How large everything of a model is on a GPU, from headers and the GPU's limits: nothing is opened, nothing is placed.

use super::context::buffer_bytes;
use super::matrix::Layout;
use super::scratch::{batch_row_bytes, scratch_bytes, widest_row};
use super::{GpuOptions, check_model, select};
use crate::arch::{Recipe, Step};
use crate::device::{Activations, Footprint, Model};
use crate::error::Result;
use crate::kernels::BLOCK;
use crate::weights::{DType, Matrix, Storage};

/// Tokens of a pass that fit the GPU's limits.
pub(super) fn most_tokens(recipe: &Recipe, limits: &wgpu::Limits, wanted: usize) -> usize {
    let row = (widest_row(recipe) * 4) as u64;
    let limit = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
    let most = (limit / row).min(u64::from(limits.max_compute_workgroups_per_dimension)) as usize;
    wanted.min(most.max(1))
}

/// What [`super::GpuDevice`] would take on the GPU that the options mean.
pub(crate) fn footprint(model: &Model, options: &GpuOptions) -> Result<Footprint> {
    check_model(model)?;
    let gpu = select::known(&options.choice)?;
    let (caps, recipe) = (options.mask.apply(gpu.caps), &model.recipe);
    let int8 = options.activations == Activations::Int8;
    let (mut layouts, mut weights) = (Vec::new(), 0u64);
    for matrix in &model.weights.matrices {
        let layout = Layout::new(&caps, matrix, scales_are_half(matrix))?;
        weights = weights.saturating_add(layout.bytes());
        layouts.push((layout.kind, layout.parts().count()));
    }
    for step in &recipe.steps {
        if let Step::Project { norm: Some(id), .. } = step {
            weights += buffer_bytes((recipe.vectors[id.0].len.next_multiple_of(BLOCK) * 4) as u64);
        }
    }
    let max_tokens = most_tokens(recipe, &gpu.limits, options.max_tokens);
    let shape = &recipe.shape;
    Ok(Footprint {
        kind: "gpu",
        device: gpu.name,
        weights,
        scratch: scratch_bytes(recipe, &layouts, max_tokens, caps.family, int8),
        batch_row: batch_row_bytes(recipe),
        cache_buffers: 2 * shape.layers as u64,
        position: (shape.kv_heads * shape.head_dim.div_ceil(4) * if int8 { 8 } else { 16 }) as u64,
        align: 16,
        largest_buffer: Some(gpu.limits.max_storage_buffer_binding_size.min(gpu.limits.max_buffer_size)),
        in_system_memory: gpu.in_system_memory,
    })
}

/// Whether f16 holds the scales, which decides their bytes: float32 ones are looked at where they begin.
fn scales_are_half(matrix: &Matrix) -> bool {
    let Storage::Packed { scales, .. } = &matrix.storage else { return false };
    let first = scales.to_f32_range(0..scales.len().min(64)).unwrap_or_default();
    scales.dtype != DType::F32 || first.iter().all(|s| super::matrix::exact_in_f16(*s))
}
