//! The loss, computed at the top of the model and split so that no large tensor is held whole.
//!
//! - cross-entropy: mean over the counted tokens, in nats;
//! - hidden distillation: `Σ (h - t)² / Σ t²` over all tokens and channels, `h` and `t` the student's and teacher's
//!   hidden states after the last norm. The paper's mean-square error, divided by the teacher's mean square so that one
//!   λ fits models of any scale;
//! - logit distillation: mean over the counted tokens of `KL(teacher ‖ student)`.
//!
//! Logits are computed for a few counted tokens at a time: a vocabulary of 128,000 makes them the largest tensor.

use anyhow::Result;
use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::forward::{Pass, Plan};

/// Weights of the distillation terms; the cross-entropy has weight 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossWeights {
    /// Of the hidden-state term.
    pub hidden: f64,
    /// Of the logit term.
    pub logits: f64,
}

impl LossWeights {
    /// Whether a teacher is needed.
    pub fn distills(&self) -> bool {
        self.hidden > 0.0 || self.logits > 0.0
    }
}

/// What means are taken over: sums over a whole step, which may have several batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Counted tokens.
    pub counted: usize,
    /// `Σ t²`; 0 without a teacher.
    pub teacher_square: f64,
}

/// The terms of a loss, unweighted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossTerms {
    /// Cross-entropy, nats a token.
    pub cross_entropy: f64,
    /// Hidden distillation, 1 = as far from the teacher as zero is.
    pub hidden: f64,
    /// Logit distillation, nats a token.
    pub logits: f64,
}

impl LossTerms {
    /// The weighted sum.
    pub fn total(&self, weights: &LossWeights) -> f64 {
        self.cross_entropy + weights.hidden * self.hidden + weights.logits * self.logits
    }

    /// Adds the terms of another batch of the same step.
    pub fn add(&mut self, other: &Self) {
        self.cross_entropy += other.cross_entropy;
        self.hidden += other.hidden;
        self.logits += other.logits;
    }
}

/// The teacher of a batch.
pub struct Teacher<'a> {
    /// (T, C) its hidden states after the last norm.
    pub hidden: Tensor<2>,
    /// The model whose head turns them into logits.
    pub head: Pass<'a>,
}

/// Elements of a piece of logits.
const PIECE: usize = 1 << 22;

/// Counted tokens whose logits are computed at once.
pub(super) fn piece(vocab: usize) -> usize {
    (PIECE / vocab.max(1)).max(1)
}

/// The loss of hidden states `h` (T, C), and its gradient with respect to them.
pub fn loss_and_gradient(
    pass: &Pass<'_>,
    plan: &Plan,
    h: Tensor<2>,
    teacher: Option<&Teacher<'_>>,
    weights: &LossWeights,
    totals: &Totals,
) -> Result<(LossTerms, Tensor<2>, Vec<Tensor<2>>)> {
    let leaf = h.clone().inner().autodiff().require_grad();
    let batch = pass.batch;
    let tracked: Vec<Tensor<2>> = head_leaves(pass, plan);
    let mut branch_gradients: Vec<Option<Tensor<2>>> = vec![None; tracked.len()];
    let mut gradient = h.zeros_like().inner();
    let mut terms = LossTerms::default();
    let mut collect = |loss: Tensor<1>, value: &mut f64, weight: f64| -> Result<()> {
        let loss = if weight == 1.0 { loss } else { loss.mul_scalar(weight) };
        let mut gradients = loss.backward();
        *value += loss.inner().try_into_scalar::<f64>()? / weight;
        if let Some(part) = leaf.grad_remove(&mut gradients) {
            gradient = gradient.clone() + part;
        }
        for (leaf, sum) in tracked.iter().zip(&mut branch_gradients) {
            if let Some(part) = leaf.grad_remove(&mut gradients) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + part,
                    None => part,
                });
            }
        }
        Ok(())
    };
    if let Some(teacher) = teacher.filter(|_| weights.hidden > 0.0 && totals.teacher_square > 0.0) {
        let distance = (leaf.clone() - teacher.hidden.clone()).square().sum();
        collect(distance.div_scalar(totals.teacher_square), &mut terms.hidden, weights.hidden)?;
    }
    let step = piece(pass.model.recipe.shape.vocab);
    for start in (0..batch.targets.len()).step_by(step) {
        let count = step.min(batch.targets.len() - start);
        let rows = batch.counted.clone().narrow(0, start, count);
        let logits = pass.logits(plan, leaf.clone().select(0, rows.clone()))?;
        let log_p = activation::log_softmax(logits, 1);
        let targets: Vec<i32> = batch.targets[start..start + count].iter().map(|t| *t as i32).collect();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &pass.model.device);
        let mut loss = log_p.clone().gather(1, targets).sum().div_scalar(-(totals.counted as f64));
        if let Some(teacher) = teacher.filter(|_| weights.logits > 0.0) {
            let other = teacher.head.logits(plan, teacher.hidden.clone().select(0, rows))?;
            let log_q = activation::log_softmax(other, 1);
            let divergence = (log_q.clone().exp() * (log_q - log_p)).sum();
            let divergence = divergence.div_scalar(totals.counted as f64);
            terms.logits += divergence.clone().inner().try_into_scalar::<f64>()?;
            terms.cross_entropy += loss.clone().inner().try_into_scalar::<f64>()?;
            loss = loss + divergence.mul_scalar(weights.logits);
            collect(loss, &mut 0.0, 1.0)?;
        } else {
            collect(loss, &mut terms.cross_entropy, 1.0)?;
        }
    }
    let branch_gradients = branch_gradients
        .into_iter()
        .zip(&tracked)
        .map(|(gradient, leaf)| gradient.unwrap_or_else(|| leaf.clone().inner().zeros_like()))
        .collect();
    Ok((terms, gradient, branch_gradients))
}

/// The tracked tensors of branches beside the head, which are used here and nowhere else.
pub(super) fn head_leaves(pass: &Pass<'_>, plan: &Plan) -> Vec<Tensor<2>> {
    super::gradients::leaves(pass, plan.head..plan.head + 1).into_iter().map(|(_, leaf)| leaf).collect()
}
