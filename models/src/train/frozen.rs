//! The base model's weights as constants on the training device.
//!
//! Weights stay in their files, packed or bf16, and become float tensors when a step needs them. They are kept as long
//! as a budget lasts; a model larger than that is dequantized layer by layer again and again, which is what lets a
//! model be adapted whose float32 weights would not fit in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calora::arch::{MatrixId, Recipe, VectorId};
use calora::device::Weights;
use calora::weights::Storage;

/// A model that is not trained.
pub struct Frozen {
    /// The steps.
    pub recipe: Arc<Recipe>,
    /// The tensors, in their files.
    pub weights: Arc<Weights>,
    /// Where it computes.
    pub device: Device,
    /// Type of its tensors.
    pub dtype: DType,
    budget: u64,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    bytes: u64,
    matrices: HashMap<MatrixId, Tensor<2>>,
}

impl Frozen {
    /// Weights of a recipe; at most `budget` bytes of float tensors are kept.
    pub fn new(
        recipe: Arc<Recipe>,
        weights: Arc<Weights>,
        device: &Device,
        dtype: DType,
        budget: u64,
    ) -> Self {
        Self { recipe, weights, device: device.clone(), dtype, budget, cache: Mutex::default() }
    }

    /// Drops the tensors that were kept.
    pub fn forget(&self) {
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = Cache::default();
    }

    /// (R, K), dequantized.
    pub fn matrix(&self, id: MatrixId) -> Result<Tensor<2>> {
        let lock = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = lock().matrices.get(&id) {
            return Ok(tensor.clone());
        }
        let matrix = &self.weights.matrices[id.0];
        let tensor = self.tensor(matrix.to_f32()?, [matrix.rows, matrix.cols]);
        let bytes = (matrix.rows * matrix.cols * 4) as u64;
        let mut cache = lock();
        if cache.bytes + bytes <= self.budget {
            cache.bytes += bytes;
            cache.matrices.insert(id, tensor.clone());
        }
        Ok(tensor)
    }

    /// (ids, K): rows of a table. A dense table is not converted whole for a few rows of it.
    pub fn rows(&self, id: MatrixId, ids: &[u32]) -> Result<Tensor<2>> {
        let matrix = &self.weights.matrices[id.0];
        let values = match &matrix.storage {
            Storage::Dense(tensor) => {
                let mut values = Vec::with_capacity(ids.len() * matrix.cols);
                for row in ids.iter().map(|id| *id as usize) {
                    values.extend(tensor.to_f32_range(row * matrix.cols..(row + 1) * matrix.cols)?);
                }
                values
            }
            Storage::Packed { .. } => {
                let index: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
                let index = Tensor::<1, Int>::from_data(TensorData::new(index, [ids.len()]), &self.device);
                return Ok(self.matrix(id)?.select(0, index));
            }
        };
        Ok(self.tensor(values, [ids.len(), matrix.cols]))
    }

    /// (1, N): a norm's weight or a bias.
    pub fn vector(&self, id: VectorId) -> Tensor<2> {
        let values = self.weights.vectors[id.0].clone();
        let count = values.len();
        self.tensor(values, [1, count])
    }

    /// Values as a constant of this model's type on its device.
    pub fn tensor(&self, values: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values, shape), (&self.device, self.dtype))
    }
}
