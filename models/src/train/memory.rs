//! What is kept in memory and what is computed again.
//!
//! Two things grow with the model: its dequantized weights, and the tape of a backward pass. Both can be had again: a
//! weight by dequantizing it once more, a tape by running a block's forward pass once more. A budget decides; whatever
//! it is, the numbers that come out are the same up to rounding.

use calora::arch::{Recipe, Step};

use super::data::Example;
use super::forward::Plan;

/// What fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Blocks whose tape is held at once; 0 for all.
    pub held_blocks: usize,
    /// Bytes of dequantized weights that are kept.
    pub weights: u64,
}

impl Budget {
    /// Divides `memory` bytes for batches of the longest examples. A second forward pass costs more than dequantizing a
    /// second time, so tapes come first, up to half of it.
    pub fn plan(recipe: &Recipe, plan: &Plan, tokens: usize, memory: u64) -> Self {
        let all = weight_bytes(recipe);
        let largest = (0..plan.blocks.len()).map(|b| tape_bytes(recipe, plan, b, tokens)).max().unwrap_or(0);
        let tape: u64 = (0..plan.blocks.len()).map(|b| tape_bytes(recipe, plan, b, tokens)).sum();
        if all + tape <= memory {
            return Self { held_blocks: 0, weights: all };
        }
        let blocks = plan.blocks.len() as u64;
        let held = (memory / 2 / largest.max(1)).clamp(1, blocks.max(1));
        let taken = held * largest;
        let held_blocks = if held >= blocks { 0 } else { held as usize };
        Self { held_blocks, weights: memory.saturating_sub(taken).min(all) }
    }
}

/// Tokens of the largest batch that can come.
pub fn largest_batch(examples: &[Example], batch: usize) -> usize {
    let mut lengths: Vec<usize> = examples.iter().map(|e| e.inputs().len()).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    lengths.iter().take(batch).sum()
}

fn weight_bytes(recipe: &Recipe) -> u64 {
    recipe.matrices.iter().map(|m| 4 * (m.rows * m.cols) as u64).sum()
}

/// What a block's tape holds, about: the input and output of every linear, norm and activation, and attention's scores.
fn tape_bytes(recipe: &Recipe, plan: &Plan, block: usize, tokens: usize) -> u64 {
    let mut floats = 0;
    for step in &recipe.steps[plan.blocks[block].clone()] {
        floats += match step {
            Step::Embed { .. } => 0,
            Step::Project { input, linears, .. } => {
                let outputs: usize = linears.iter().map(|id| recipe.linear_shape(*id).0).sum();
                4 * recipe.shape.width(*input) + 3 * outputs
            }
            Step::Attend { .. } => {
                6 * recipe.shape.heads * recipe.shape.head_dim + 3 * recipe.shape.heads * tokens.min(512)
            }
        };
    }
    4 * (floats * tokens) as u64
}
