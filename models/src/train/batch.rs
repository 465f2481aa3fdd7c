//! Several examples of different lengths as tensors.
//!
//! The tokens of all examples lie one behind the other, `T` in all: linears and norms compute no padding. Only
//! attention, which is quadratic in one example's length and cheap at the lengths of task data, sees a padded
//! (examples, longest) grid; two index tensors lead there and back.

use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use calora::arch::Recipe;

use super::data::Example;

/// Tensors of a batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// (T) token ids that the model reads.
    pub ids: Vec<u32>,
    /// (T, 1, D/2) cosine and sine of each token's position.
    pub rope: (Tensor<3>, Tensor<3>),
    /// Where attention finds its rows.
    pub grid: Grid,
    /// (M) rows of T whose next token counts in the loss.
    pub counted: Tensor<1, Int>,
    /// (M) those next tokens.
    pub targets: Vec<u32>,
    /// T.
    pub tokens: usize,
    /// For each example the range of its rows in T.
    pub rows: Vec<std::ops::Range<usize>>,
    /// For each example the range of its tokens in M.
    pub answers: Vec<std::ops::Range<usize>>,
}

/// The padded grid of attention.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Examples.
    pub rows: usize,
    /// Tokens of the longest.
    pub length: usize,
    /// (rows * length) index in T for each cell, 0 for padding, and (T) cell for each token; nothing where no cell is
    /// padding. Padding lies behind an example's tokens, where causal attention never looks.
    pub ways: Option<(Tensor<1, Int>, Tensor<1, Int>)>,
    /// (rows, KV heads, query heads of each * length, length): true where a position lies ahead.
    pub mask: Tensor<4, Bool>,
}

impl Batch {
    /// Tensors on a device, floats in `dtype`.
    pub fn new(examples: &[&Example], recipe: &Recipe, device: &Device, dtype: DType) -> Self {
        let tokens: usize = examples.iter().map(|e| e.inputs().len()).sum();
        let length = examples.iter().map(|e| e.inputs().len()).max().unwrap_or(0);
        let half = recipe.rope.inverse_frequencies.len();
        let (mut ids, mut counted, mut targets) = (Vec::with_capacity(tokens), Vec::new(), Vec::new());
        let (mut cos, mut sin) = (Vec::with_capacity(tokens * half), Vec::with_capacity(tokens * half));
        let (mut to_grid, mut from_grid) = (vec![0; examples.len() * length], Vec::with_capacity(tokens));
        let (mut rows, mut answers) = (Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            let (start, answer) = (ids.len(), targets.len());
            for (position, id) in example.inputs().iter().enumerate() {
                to_grid[row * length + position] = ids.len() as i32;
                from_grid.push((row * length + position) as i32);
                if position + 1 >= example.first {
                    counted.push(ids.len() as i32);
                    targets.push(example.ids[position + 1]);
                }
                ids.push(*id);
                for frequency in &recipe.rope.inverse_frequencies {
                    let angle = position as f64 * frequency;
                    cos.push(angle.cos());
                    sin.push(angle.sin());
                }
            }
            rows.push(start..ids.len());
            answers.push(answer..targets.len());
        }
        let index = |values: Vec<i32>| {
            let count = values.len();
            Tensor::<1, Int>::from_data(TensorData::new(values, [count]), device)
        };
        let table = |values: Vec<f64>| {
            Tensor::<3>::from_data(TensorData::new(values, [tokens, 1, half]), (device, dtype))
        };
        let (groups, share) = (recipe.shape.kv_heads, recipe.shape.heads / recipe.shape.kv_heads);
        let mask = Tensor::<2, Bool>::tril_mask([length, length], 0, device)
            .unsqueeze_dim::<3>(0)
            .expand([share, length, length])
            .reshape([1, 1, share * length, length])
            .expand([examples.len(), groups, share * length, length]);
        let padded = tokens != examples.len() * length;
        Self {
            ids,
            rope: (table(cos), table(sin)),
            grid: Grid {
                rows: examples.len(),
                length,
                ways: padded.then(|| (index(to_grid), index(from_grid))),
                mask,
            },
            counted: index(counted),
            targets,
            tokens,
            rows,
            answers,
        }
    }
}
