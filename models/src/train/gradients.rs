//! Gradients of one batch, block by block.
//!
//! A tape over the whole model holds every activation. Where that is too much, blocks first run without a tape, only
//! the residual before each being kept; then from the top each group of blocks runs again with one, and
//! `(y · dy).sum()` passes the gradient on. The last group runs once: its tape is still there. With one group this is
//! the ordinary backward pass, and both give the same numbers.

use std::ops::Range;

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use calora::arch::Step;

use super::forward::{Pass, Plan};
use super::loss::{LossTerms, LossWeights, Teacher, Totals, loss_and_gradient};

/// Loss terms of a batch and the gradient of their weighted sum for every tensor of [`tensors`](super::branches::Branches::tensors), in order.
///
/// `held` is the number of blocks whose tape is held at once, 0 for all.
pub fn gradients(
    pass: &Pass<'_>,
    plan: &Plan,
    held: usize,
    teacher: Option<&Teacher<'_>>,
    weights: &LossWeights,
    totals: &Totals,
) -> Result<(LossTerms, Vec<Tensor<2>>)> {
    let branches = pass.branches.tracked();
    let taped = Pass { branches: &branches, ..*pass };
    let mut out: Vec<Option<Tensor<2>>> = vec![None; branches.tensors().count()];
    let groups = groups(plan, held);
    // Whether a group has branches, and whether any below it has: gradients go no further down than that.
    let own: Vec<bool> = groups.iter().map(|steps| !leaves(&taped, steps.clone()).is_empty()).collect();
    let lower: Vec<bool> = (0..own.len()).map(|index| own[..index].contains(&true)).collect();
    let input = |x: Tensor<2>, needed: bool| {
        let x = x.autodiff();
        if needed { x.require_grad() } else { x }
    };

    let mut inputs = Vec::with_capacity(groups.len());
    let mut x = pass.embed()?;
    let mut tape = None;
    for (index, steps) in groups.iter().enumerate() {
        inputs.push(x.clone());
        if index + 1 == groups.len() {
            let leaf = input(x, lower[index]);
            let y = taped.run(steps.clone(), leaf.clone())?;
            x = y.clone().inner();
            tape = Some((leaf, y));
        } else {
            x = pass.run(steps.clone(), x)?;
        }
    }

    // The head and its norm.
    let top = x.autodiff().require_grad();
    let hidden = taped.hidden(plan, top.clone());
    let (terms, dh, head) =
        loss_and_gradient(&taped, plan, hidden.clone().inner(), teacher, weights, totals)?;
    for ((index, _), gradient) in leaves(&taped, plan.head..plan.head + 1).into_iter().zip(head) {
        out[index] = Some(gradient);
    }
    let mut tapes = (hidden * dh).sum().backward();
    let mut dy = top.grad_remove(&mut tapes).context("no gradient reached the last layer")?;

    for (index, (steps, x)) in groups.iter().zip(inputs).enumerate().rev() {
        if !own[index] && !lower[index] {
            break;
        }
        let (leaf, y) = match tape.take() {
            Some(tape) => tape,
            None => {
                let leaf = input(x, lower[index]);
                (leaf.clone(), taped.run(steps.clone(), leaf)?)
            }
        };
        let mut tapes = (y * dy.clone()).sum().backward();
        for (index, leaf) in leaves(&taped, steps.clone()) {
            out[index] = leaf.grad_remove(&mut tapes);
        }
        if lower[index] {
            dy = leaf.grad_remove(&mut tapes).context("no gradient reached a layer's input")?;
        }
    }
    let out = out.into_iter().zip(branches.tensors());
    Ok((terms, out.map(|(g, leaf)| g.unwrap_or_else(|| leaf.clone().inner().zeros_like())).collect()))
}

/// Blocks in groups of `held`.
fn groups(plan: &Plan, held: usize) -> Vec<Range<usize>> {
    let size = if held == 0 { plan.blocks.len().max(1) } else { held };
    plan.blocks.chunks(size).map(|blocks| blocks[0].start..blocks[blocks.len() - 1].end).collect()
}

/// The branch tensors that these steps use, with their place among all.
pub(super) fn leaves(pass: &Pass<'_>, steps: Range<usize>) -> Vec<(usize, Tensor<2>)> {
    let mut used = vec![false; pass.model.recipe.linears.len()];
    for step in &pass.model.recipe.steps[steps] {
        if let Step::Project { linears, .. } = step {
            linears.iter().for_each(|id| used[id.0] = true);
        }
    }
    let all = pass.branches.of.iter().zip(used).flat_map(|(list, used)| list.iter().map(move |b| (b, used)));
    let tensors = all.flat_map(|(branch, used)| [(&branch.down, used), (&branch.up, used)]);
    let tensors = tensors.enumerate().filter(|(_, (_, used))| *used);
    tensors.map(|(index, (tensor, _))| (index, tensor.clone())).collect()
}
