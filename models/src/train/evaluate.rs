//! How good the branches are on held-out rows, computed by the trainer itself: the loss while training goes on, the
//! accuracy at its end. `calora eval` measures the same on the finished file with the engine's own kernels.

use anyhow::Result;
use burn::tensor::{Int, Tensor, TensorData, activation};
use serde::{Deserialize, Serialize};

use super::batch::Batch;
use super::branches::Branches;
use super::data::{Encoder, Example};
use super::forward::{Pass, Plan};
use super::frozen::Frozen;
use super::loss::piece;
use crate::rows::Row;

/// Tokens evaluated at once.
const TOKENS: usize = 2048;

/// A result on held-out rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Mean negative log-likelihood of a counted token, nats.
    pub loss: f64,
    /// Choice rows: the likeliest choice is the right one. Completion rows: every token of the answer is the likeliest,
    /// so that greedy decoding gives exactly this answer. Nothing for text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// What the model says of one example.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Sum over counted tokens of the negative log-likelihood.
    loss: f64,
    /// Every counted token is the likeliest.
    greedy: bool,
}

/// Mean loss over counted tokens of examples.
pub fn loss(model: &Frozen, branches: &Branches, examples: &[Example]) -> Result<f64> {
    let answers = answers(model, branches, examples)?;
    let tokens: usize = examples.iter().map(Example::counted).sum();
    Ok(answers.iter().map(|a| a.loss).sum::<f64>() / tokens.max(1) as f64)
}

/// Loss and accuracy on rows. The loss counts what training counts, the accuracy what `calora eval` counts.
pub fn score(model: &Frozen, branches: &Branches, encoder: &Encoder<'_>, rows: &[Row]) -> Result<Score> {
    let (mut right, mut judged) = (0, 0);
    let (mut sum, mut tokens) = (0.0, 0);
    for part in rows.chunks(64) {
        let examples: Vec<Vec<Example>> =
            part.iter().map(|row| encoder.examples(row)).collect::<Result<_>>()?;
        let flat: Vec<Example> = examples.iter().flatten().cloned().collect();
        let found = answers(model, branches, &flat)?;
        sum += found.iter().map(|a| a.loss).sum::<f64>();
        tokens += flat.iter().map(Example::counted).sum::<usize>();
        let mut choices = Vec::new();
        for (row, answer) in part.iter().zip(&found) {
            match row {
                Row::Completion { .. } => {
                    judged += 1;
                    right += usize::from(answer.greedy);
                }
                Row::Choice { prompt, choices: options, label } => {
                    judged += 1;
                    let pairs: Vec<Example> = options
                        .iter()
                        .map(|choice| encoder.pair(prompt, choice, false))
                        .collect::<Result<_>>()?;
                    choices.push((pairs, *label));
                }
                Row::Text { .. } => {}
            }
        }
        let flat: Vec<Example> = choices.iter().flat_map(|(pairs, _)| pairs).cloned().collect();
        let mut found = answers(model, branches, &flat)?.into_iter();
        for (pairs, label) in choices {
            let losses: Vec<f64> = found.by_ref().take(pairs.len()).map(|a| a.loss).collect();
            let best = losses.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1));
            right += usize::from(best.is_some_and(|(index, _)| index == label));
        }
    }
    let accuracy = (judged > 0).then(|| right as f64 / judged as f64);
    Ok(Score { loss: sum / tokens.max(1) as f64, accuracy })
}

fn answers(model: &Frozen, branches: &Branches, examples: &[Example]) -> Result<Vec<Answer>> {
    let plan = Plan::new(&model.recipe)?;
    // Like lengths together, so that attention's grid has little padding.
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|index| examples[*index].ids.len());
    let mut out = vec![Answer { loss: 0.0, greedy: true }; examples.len()];
    let mut start = 0;
    while start < order.len() {
        let (mut end, mut tokens) = (start, 0);
        while end < order.len() && (end == start || tokens < TOKENS) {
            tokens += examples[order[end]].inputs().len();
            end += 1;
        }
        let indices = &order[start..end];
        let chosen: Vec<&Example> = indices.iter().map(|i| &examples[*i]).collect();
        let batch = Batch::new(&chosen, &model.recipe, &model.device, model.dtype);
        let pass = Pass { model, branches, batch: &batch };
        let hidden = pass.last_hidden(&plan)?;
        let (losses, greedy) = tokens_of(&pass, &plan, hidden)?;
        for (index, answers) in indices.iter().zip(&batch.answers) {
            out[*index] = Answer {
                loss: losses[answers.clone()].iter().map(|l| f64::from(*l)).sum(),
                greedy: greedy[answers.clone()].iter().all(|right| *right),
            };
        }
        start = end;
    }
    Ok(out)
}

/// For each counted token its negative log-likelihood, and whether it is the likeliest.
fn tokens_of(pass: &Pass<'_>, plan: &Plan, hidden: Tensor<2>) -> Result<(Vec<f32>, Vec<bool>)> {
    let batch = pass.batch;
    let (mut losses, mut greedy) = (Vec::new(), Vec::new());
    let step = piece(pass.model.recipe.shape.vocab);
    for start in (0..batch.targets.len()).step_by(step) {
        let count = step.min(batch.targets.len() - start);
        let rows = batch.counted.clone().narrow(0, start, count);
        let logits = pass.logits(plan, hidden.clone().select(0, rows))?;
        let wanted = &batch.targets[start..start + count];
        let targets: Vec<i32> = wanted.iter().map(|t| *t as i32).collect();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &pass.model.device);
        let best = logits.clone().argmax(1).try_into_vec_as::<i32>()?;
        greedy.extend(best.iter().zip(wanted).map(|(best, wanted)| *best == *wanted as i32));
        let log_p = activation::log_softmax(logits, 1).gather(1, targets).neg();
        losses.extend(log_p.try_into_vec_as::<f32>()?);
    }
    Ok((losses, greedy))
}
