//! The recipe's steps on training tensors. What the engine's devices fuse is spelt out here, because gradients must
//! flow through it.

use std::ops::Range;

use anyhow::{Context, Result, bail};
use burn::tensor::{Tensor, activation};
use calora::arch::{Activation, LinearId, Output, Recipe, Slot, Step};

use super::batch::Batch;
use super::branches::Branches;
use super::frozen::Frozen;

/// A pass over one batch.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The base.
    pub model: &'a Frozen,
    /// What is beside its linears.
    pub branches: &'a Branches,
    /// The tokens.
    pub batch: &'a Batch,
}

/// Rows of a pass; slots that no step has written are empty.
#[derive(Default)]
struct Slots {
    rows: Vec<(Slot, Tensor<2>)>,
}

impl Slots {
    fn get(&self, slot: Slot) -> Result<Tensor<2>> {
        let found = self.rows.iter().find(|(s, _)| *s == slot);
        Ok(found.with_context(|| format!("the recipe reads {slot:?} before it is written"))?.1.clone())
    }

    fn set(&mut self, slot: Slot, value: Tensor<2>) {
        self.rows.retain(|(s, _)| *s != slot);
        self.rows.push((slot, value));
    }
}

/// The steps of a recipe as training sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Runs of steps between which only the residual is alive: a Llama layer is two, attention and MLP.
    pub blocks: Vec<Range<usize>>,
    /// The last step: norm and head.
    pub head: usize,
}

impl Plan {
    /// Cuts a recipe: the embedding, blocks, and the head.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let steps = &recipe.steps;
        let head = steps.len().saturating_sub(1);
        let is_head = |step: &Step| matches!(step, Step::Project { output: Output::Store(to), .. } if to == &[Slot::Logits]);
        if !matches!(steps.first(), Some(Step::Embed { .. })) || !steps.get(head).is_some_and(is_head) {
            bail!("{}: training expects an embedding first and a head last", recipe.architecture);
        }
        let mut blocks = Vec::new();
        let mut start = 1;
        for at in 1..head {
            if only_residual_is_read(&steps[at + 1..]) {
                blocks.push(start..at + 1);
                start = at + 1;
            }
        }
        if start != head {
            bail!("{}: the head reads more than the residual", recipe.architecture);
        }
        Ok(Self { blocks, head })
    }
}

/// Whether these steps read no slot but the residual before they write it.
fn only_residual_is_read(steps: &[Step]) -> bool {
    let mut written = vec![Slot::Residual];
    for step in steps {
        let reads: &[Slot] = match step {
            Step::Embed { .. } => &[],
            Step::Project { input, .. } => std::slice::from_ref(input),
            Step::Attend { .. } => &[Slot::Query, Slot::Key, Slot::Value],
        };
        if reads.iter().any(|slot| !written.contains(slot)) {
            return false;
        }
        match step {
            Step::Embed { .. } | Step::Project { output: Output::AddToResidual, .. } => {}
            Step::Project { output: Output::Store(to), .. } => written.extend(to),
            Step::Project { output: Output::Gated(_), .. } => written.push(Slot::Gated),
            Step::Attend { .. } => written.push(Slot::Attended),
        }
    }
    true
}

impl Pass<'_> {
    /// (T, C): the residual before the first layer.
    pub fn embed(&self) -> Result<Tensor<2>> {
        match self.model.recipe.steps.first() {
            Some(Step::Embed { table }) => self.model.rows(*table, &self.batch.ids),
            _ => bail!("the recipe does not begin with an embedding"),
        }
    }

    /// Runs the steps of one or more blocks, residual in and out.
    pub fn run(&self, steps: Range<usize>, residual: Tensor<2>) -> Result<Tensor<2>> {
        let mut slots = Slots::default();
        slots.set(Slot::Residual, residual);
        for step in &self.model.recipe.steps[steps] {
            match step {
                Step::Embed { .. } => bail!("the recipe has an embedding in its middle"),
                Step::Project { norm, input, linears, output } => {
                    let mut x = slots.get(*input)?;
                    if let Some(norm) = norm {
                        x = self.norm(x, self.model.vector(*norm));
                    }
                    self.project(x, linears, output, &mut slots)?;
                }
                Step::Attend { .. } => {
                    let attended =
                        self.attend(slots.get(Slot::Query)?, slots.get(Slot::Key)?, slots.get(Slot::Value)?);
                    slots.set(Slot::Attended, attended);
                }
            }
        }
        slots.get(Slot::Residual)
    }

    /// (T, C): hidden states after the last norm.
    pub fn hidden(&self, plan: &Plan, residual: Tensor<2>) -> Tensor<2> {
        match &self.model.recipe.steps[plan.head] {
            Step::Project { norm: Some(norm), .. } => self.norm(residual, self.model.vector(*norm)),
            _ => residual,
        }
    }

    /// (rows, vocabulary) logits of rows of hidden states.
    pub fn logits(&self, plan: &Plan, hidden: Tensor<2>) -> Result<Tensor<2>> {
        match &self.model.recipe.steps[plan.head] {
            Step::Project { linears, .. } if linears.len() == 1 => self.linear(linears[0], hidden),
            _ => bail!("the recipe has no head"),
        }
    }

    /// Everything but the head, without a tape: (T, C) hidden states after the last norm.
    pub fn last_hidden(&self, plan: &Plan) -> Result<Tensor<2>> {
        let mut x = self.embed()?;
        for block in &plan.blocks {
            x = self.run(block.clone(), x)?;
        }
        Ok(self.hidden(plan, x))
    }

    fn project(&self, x: Tensor<2>, linears: &[LinearId], output: &Output, slots: &mut Slots) -> Result<()> {
        let mut results = Vec::with_capacity(linears.len());
        for id in linears {
            results.push(self.linear(*id, x.clone())?);
        }
        match output {
            Output::Store(to) => {
                for (slot, y) in to.iter().zip(results) {
                    slots.set(*slot, y);
                }
            }
            Output::AddToResidual => {
                for y in results {
                    slots.set(Slot::Residual, slots.get(Slot::Residual)? + y);
                }
            }
            Output::Gated(activation) => {
                let mut results = results.into_iter();
                let (Some(gate), Some(up)) = (results.next(), results.next()) else {
                    bail!("a gated step needs a gate and an up projection");
                };
                let gate = match activation {
                    Activation::Silu => activation::silu(gate),
                };
                slots.set(Slot::Gated, gate * up);
            }
        }
        Ok(())
    }

    /// `y = W x + bias + Σ branches`.
    fn linear(&self, id: LinearId, x: Tensor<2>) -> Result<Tensor<2>> {
        let linear = &self.model.recipe.linears[id.0];
        let weight = self.model.matrix(linear.matrix)?;
        let mut y = x.clone().matmul(weight.transpose());
        if let Some(bias) = linear.bias {
            y = y + self.model.vector(bias);
        }
        for branch in self.branches.of.get(id.0).into_iter().flatten() {
            y = y + branch.forward(x.clone());
        }
        Ok(y)
    }

    fn norm(&self, x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        let mean_square = x.clone().square().mean_dim(1);
        x / (mean_square + f64::from(self.model.recipe.norm_eps)).sqrt() * weight
    }

    /// Rotary embedding and causal attention within each example.
    fn attend(&self, q: Tensor<2>, k: Tensor<2>, v: Tensor<2>) -> Tensor<2> {
        let shape = &self.model.recipe.shape;
        let (heads, groups, size) = (shape.heads, shape.kv_heads, shape.head_dim);
        let share = heads / groups;
        let grid = &self.batch.grid;
        let (rows, length, tokens) = (grid.rows, grid.length, self.batch.tokens);
        let spread = |x: Tensor<2>| match &grid.ways {
            Some((to, _)) => x.select(0, to.clone()),
            None => x,
        };
        let q = spread(self.rotate(q, heads));
        let k = spread(self.rotate(k, groups));
        // (rows, KV heads, share * length, D): query heads that share keys stand below each other, so that keys and
        // values are not copied for each.
        let q = q.reshape([rows, length, groups, share, size]).permute([0, 2, 3, 1, 4]).reshape([
            rows,
            groups,
            share * length,
            size,
        ]);
        let k = k.reshape([rows, length, groups, size]).permute([0, 2, 3, 1]);
        let v = spread(v).reshape([rows, length, groups, size]).permute([0, 2, 1, 3]);
        let scores = q.matmul(k).mul_scalar((size as f64).powf(-0.5));
        let attended = activation::softmax(scores.mask_fill(grid.mask.clone(), -1e9), 3).matmul(v);
        let attended = attended
            .reshape([rows, groups, share, length, size])
            .permute([0, 3, 1, 2, 4])
            .reshape([rows * length, heads * size]);
        match &grid.ways {
            Some((_, from)) => attended.select(0, from.clone()),
            None => attended.reshape([tokens, heads * size]),
        }
    }

    /// Rotates half-split pairs `(i, i + D/2)` by each token's position.
    fn rotate(&self, x: Tensor<2>, heads: usize) -> Tensor<2> {
        let [tokens, width] = x.dims();
        let half = width / heads / 2;
        let x = x.reshape([tokens, heads, 2 * half]);
        let (first, second) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
        let (cos, sin) = &self.batch.rope;
        let left = first.clone() * cos.clone() - second.clone() * sin.clone();
        let right = second * cos.clone() + first * sin.clone();
        Tensor::cat(vec![left, right], 2).reshape([tokens, width])
    }
}
