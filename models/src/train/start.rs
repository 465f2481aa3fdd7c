//! Where branches begin.

use std::collections::BTreeMap;

use burn::tensor::{DType, Device};
use calora::adapter::BranchKind;
use calora::arch::{LinearId, Recipe};

use super::branches::{Branch, Branches, Values};

/// A fresh branch, which changes nothing yet: `down` uniform in ±1/√K (as PEFT's `kaiming_uniform_(a=√5)`), `up` zero.
pub fn fresh(
    recipe: &Recipe,
    id: LinearId,
    kind: BranchKind,
    (rank, scaling): (usize, f32),
    seed: u64,
    (device, dtype): (&Device, DType),
) -> Branch {
    let (rows, cols) = recipe.linear_shape(id);
    let bound = 1.0 / (cols as f32).sqrt();
    // Each matrix has its own stream, so that one linear's start does not depend on which others are trained.
    let stream = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((id.0 as u64) << 8) ^ (kind as u64);
    let mut random = fastrand::Rng::with_seed(stream);
    let down = (0..rank * cols).map(|_| (2.0 * random.f32() - 1.0) * bound).collect();
    let down = Values { rows: rank, cols, data: down };
    let up = Values { rows, cols: rank, data: vec![0.0; rows * rank] };
    Branch { kind, scaling, down: down.tensor(device, dtype), up: up.tensor(device, dtype) }
}

/// Fresh LoRAs of one rank beside some linears, `scaling = alpha / rank`.
pub fn lora(
    recipe: &Recipe,
    linears: &[LinearId],
    (rank, alpha): (usize, f32),
    seed: u64,
    place: (&Device, DType),
) -> Branches {
    let mut branches = Branches::none(recipe.linears.len());
    for id in linears {
        let shape = (rank, alpha / rank as f32);
        branches.of[id.0].push(fresh(recipe, *id, BranchKind::Lora, shape, seed, place));
    }
    branches
}

/// Fresh LoRAs of the shape of existing ones.
pub fn like(recipe: &Recipe, other: &Branches, seed: u64, place: (&Device, DType)) -> Branches {
    let mut branches = Branches::none(recipe.linears.len());
    for (index, list) in other.of.iter().enumerate() {
        for branch in list {
            let shape = (branch.rank(), branch.scaling);
            branches.of[index].push(fresh(recipe, LinearId(index), branch.kind, shape, seed, place));
        }
    }
    branches
}

/// Adds a recovery branch beside each of some linears: the given factors (down, up), else a fresh one.
pub fn add_recovery(
    branches: &mut Branches,
    recipe: &Recipe,
    linears: &[LinearId],
    (kind, rank): (BranchKind, usize),
    mut factors: BTreeMap<LinearId, (Values, Values)>,
    seed: u64,
    (device, dtype): (&Device, DType),
) {
    for id in linears {
        let branch = match factors.remove(id) {
            Some((down, up)) => {
                Branch { kind, scaling: 1.0, down: down.tensor(device, dtype), up: up.tensor(device, dtype) }
            }
            None => fresh(recipe, *id, kind, (rank, 1.0), seed, (device, dtype)),
        };
        branches.of[id.0].push(branch);
    }
}

/// The rank of recovery that fits a model: 32 at 2,048 channels (the size of a phone's model), in proportion to the
/// width below and above, even (mirrored pairs), at least 8.
pub fn default_rank(recipe: &Recipe) -> usize {
    (recipe.shape.hidden / 64).clamp(8, 64).next_multiple_of(2)
}
