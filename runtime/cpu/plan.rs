//! How large everything of a model is on the CPU, before it is there; working memory is made of the same numbers.

use super::CpuOptions;
use super::dot::{LANES, TILE_WEIGHTS};
use super::input::Form;
use super::matmul::form;
use super::run::LOGIT_TOKENS;
use crate::adapter::{LowRank, Tail};
use crate::arch::{Recipe, Slot, Step};
use crate::device::{Activations, Footprint, Model, Weights, position_bytes};
use crate::quant::activations::BLOCK;

/// Elements of each part of working memory for passes of up to so many tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) residual: usize,
    /// Also attended.
    pub(super) query: usize,
    /// Also value.
    pub(super) key: usize,
    pub(super) gated: usize,
    /// One row.
    pub(super) logits: usize,
    pub(super) staging: usize,
    pub(super) angles: usize,
    pub(super) plain: usize,
    pub(super) halves: usize,
    /// Tiles of each order.
    pub(super) tiles: [usize; 3],
}

impl Sizes {
    pub(super) fn new(model: &Model, activations: Activations, max_tokens: usize) -> Self {
        let Model { recipe, weights } = model;
        let shape = &recipe.shape;
        // No pass is longer than the longest cache.
        let tokens = max_tokens.min(shape.context.max(1));
        let rows = |slot| tokens.saturating_mul(shape.width(slot));
        let mut sizes = Self {
            residual: rows(Slot::Residual),
            query: rows(Slot::Query),
            key: rows(Slot::Key),
            gated: rows(Slot::Gated),
            logits: shape.vocab,
            angles: tokens.saturating_mul(recipe.rope.inverse_frequencies.len()),
            ..Self::default()
        };
        for step in &recipe.steps {
            sizes.add(step, recipe, weights, activations, tokens);
        }
        sizes
    }

    /// Makes room for a step.
    fn add(
        &mut self,
        step: &Step,
        recipe: &Recipe,
        weights: &Weights,
        activations: Activations,
        tokens: usize,
    ) {
        let Step::Project { linears, output, .. } = step else { return };
        let tokens = if output.is_logits() { tokens.min(LOGIT_TOKENS) } else { tokens };
        let mut rows = 0;
        for matrix in linears.iter().map(|id| recipe.linears[id.0].matrix.0) {
            let (Some(spec), Some(matrix)) = (recipe.matrices.get(matrix), weights.matrices.get(matrix))
            else {
                continue;
            };
            rows += spec.rows;
            let stride = spec.cols.next_multiple_of(BLOCK);
            let inputs = tokens.saturating_mul(stride);
            self.plain = self.plain.max(inputs);
            match form(&matrix.storage, activations) {
                Form::Plain => {}
                Form::Halves => self.halves = self.halves.max(inputs),
                Form::Int(order) => {
                    let tiles = &mut self.tiles[order as usize];
                    *tiles = (*tiles).max(tokens.saturating_mul(stride.div_ceil(TILE_WEIGHTS)));
                }
            }
        }
        self.staging = self.staging.max(tokens.saturating_mul(rows));
    }

    /// Bytes of all.
    fn bytes(&self) -> u64 {
        let floats = [
            (1, self.residual),
            (2, self.query),
            (2, self.key),
            (1, self.gated),
            (1, self.logits),
            (1, self.staging),
            (2, self.angles),
            (1, self.plain),
            (1, self.halves),
        ];
        let floats = floats.map(|(times, n)| (4 * times, n));
        let tiles = self.tiles.map(|n| (TILE_WEIGHTS + 8 * LANES, n));
        let bytes = |sum: u64, (size, n): &(usize, usize)| sum.saturating_add(size.saturating_mul(*n) as u64);
        floats.iter().chain(&tiles).fold(0, bytes)
    }
}

/// What [`super::CpuDevice`] would take; reads no weight.
pub(crate) fn footprint(model: &Model, options: &CpuOptions) -> Footprint {
    Footprint {
        batch_row: 0,
        kind: "cpu",
        device: super::processor(),
        weights: weights(&model.weights),
        scratch: Sizes::new(model, options.activations, options.max_tokens).bytes(),
        cache_buffers: 1,
        position: position_bytes(&model.recipe.shape, options.activations) as u64,
        align: 1,
        largest_buffer: None,
        in_system_memory: true,
    }
}

/// Bytes of matrices in their files and of vectors in memory.
pub(super) fn weights(weights: &Weights) -> u64 {
    weights.byte_len() + weights.vectors.iter().map(|v| 4 * v.len() as u64).sum::<u64>()
}

/// What branches take, at most: as their files have them, int8 as halves where that may be.
pub(super) fn tail_bytes(tails: &[&Tail], activations: Activations) -> u64 {
    let bytes = |m: &LowRank| match m {
        LowRank::Float(tensor) => tensor.bytes().len(),
        LowRank::Int8 { values, .. } if activations == Activations::Int8 => 2 * values.bytes().len(),
        LowRank::Int8 { values, .. } => 4 * values.bytes().len(),
    };
    let branches = tails.iter().flat_map(|tail| tail.branches.iter().flatten());
    branches.map(|b| (bytes(&b.down) + bytes(&b.up)) as u64).sum()
}
