//! The training loop.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use burn::tensor::Tensor;
use serde_json::json;

use super::batch::Batch;
use super::branches::{Branches, Values};
use super::checkpoint::{Best, Checkpoint, RunFolder};
use super::data::{Encoder, Example, Order};
use super::evaluate::{self, Score};
use super::forward::{Pass, Plan};
use super::frozen::Frozen;
use super::gradients::gradients;
use super::loss::{LossTerms, LossWeights, Teacher, Totals};
use super::memory::{Budget, largest_batch};
use super::optimizer::Optimizer;
use super::options::TrainOptions;
use super::teacher::TeacherStates;
use crate::rows::Row;

/// What is to be trained, on what.
pub struct Job<'a> {
    /// The model that computes the loss; not trained.
    pub model: &'a Frozen,
    /// What is trained, as it begins.
    pub branches: Branches,
    /// Training examples.
    pub examples: &'a [Example],
    /// Rows that are not trained on, and how to encode them.
    pub heldout: Option<(&'a [Row], Encoder<'a>)>,
    /// Weights of the distillation terms.
    pub weights: LossWeights,
    /// Steps, batch, learning rate and so on.
    pub options: &'a TrainOptions,
    /// Where checkpoints and logs go.
    pub folder: Option<&'a RunFolder>,
}

/// The teacher's states, and the model whose head turns them into logits.
pub struct TeacherSource<'a> {
    /// On disk.
    pub states: TeacherStates,
    /// The uncompressed model.
    pub model: &'a Frozen,
    /// The original LoRA.
    pub branches: &'a Branches,
}

/// What happens while a job runs.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// The teacher computes its states: examples done and in all.
    Teacher(usize, usize),
    /// Calibration: parts done and in all.
    Calibration(usize, usize),
    /// The run goes on from a checkpoint of this step.
    Resumed(usize),
    /// The held-out rows before the first step.
    Start(Score),
    /// A step is done.
    Step {
        /// Steps done.
        step: usize,
        /// Its loss.
        loss: f64,
        /// Tokens a second since the last event.
        speed: f64,
    },
    /// The held-out rows after a step.
    Evaluated {
        /// Steps done.
        step: usize,
        /// The held-out loss.
        loss: f64,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The best state on the held-out rows; without such rows, the last.
    pub branches: Branches,
    /// The held-out score before the first step.
    pub start: Option<Score>,
    /// Steps after which the best state was met, and its score.
    pub best: Option<(usize, Score)>,
    /// Loss of the last step.
    pub last: LossTerms,
    /// Seconds of training in this process, evaluation left out.
    pub seconds: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Tokens read in those seconds.
    pub tokens: usize,
}

/// Trains. Killed and started again with the same folder, it goes on from the last checkpoint and ends in the same state,
/// bit for bit on one machine and number of threads.
pub fn train(
    job: Job<'_>,
    mut teacher: Option<TeacherSource<'_>>,
    progress: &mut dyn FnMut(Event),
) -> Result<Outcome> {
    let options = job.options;
    options.check()?;
    let plan = Plan::new(&job.model.recipe)?;
    let (device, dtype) = (&job.model.device, job.model.dtype);
    let names = job.branches.names(&job.model.recipe);
    let mut branches = job.branches.clone();
    let mut optimizer = Optimizer::new(options, names.len());
    let (mut first, mut best, mut start): (usize, Option<Best>, Option<Score>) = (0, None, None);
    let restore = |values: &[Values]| job.branches.with(values.iter().map(|v| v.tensor(device, dtype)));
    if let Some(checkpoint) = job.folder.map(|f| f.latest(&names)).transpose()?.flatten() {
        branches = restore(&checkpoint.branches);
        if let Some(moments) = checkpoint.moments {
            optimizer.restore(moments, checkpoint.step, device, dtype);
        }
        (first, best, start) = (checkpoint.step, checkpoint.best, checkpoint.start);
        progress(Event::Resumed(first));
    }
    let mut log = job.folder.map(|folder| folder.log_from(first)).transpose()?;
    let heldout = job.heldout.as_ref().map(|(rows, encoder)| heldout_examples(rows, encoder)).transpose()?;
    if first == 0
        && let Some((rows, encoder)) = &job.heldout
    {
        let score = evaluate::score(job.model, &branches, encoder, rows)?;
        best = Some(Best { step: 0, loss: score.loss, branches: branches.values()? });
        start = Some(score);
        progress(Event::Start(score));
        if let Some(log) = &mut log {
            log.line(&json!({"step": 0, "heldout": score}))?;
        }
    }
    let tokens = largest_batch(job.examples, options.batch);
    let held = Budget::plan(&job.model.recipe, &plan, tokens, options.memory).held_blocks;
    let mut order = Order::new(job.examples.len(), options.seed);
    let per_step = options.batch * options.accumulate;
    let (mut last, mut tokens, mut times) = (LossTerms::default(), 0, Vec::new());
    for step in first..options.steps {
        let clock = Instant::now();
        let indices = order.indices(step * per_step, per_step);
        let (terms, sum, read) = step_gradients((&job, held), &branches, &plan, &indices, teacher.as_mut())?;
        let rate = options.learning_rate_at(step);
        let (next, norm) = optimizer.step(&branches, sum, rate).with_context(|| format!("step {step}"))?;
        branches = next;
        let seconds = clock.elapsed().as_secs_f64();
        times.push(seconds);
        tokens += read;
        last = terms;
        let (done, loss) = (step + 1, terms.total(&job.weights));
        progress(Event::Step { step: done, loss, speed: read as f64 / seconds });
        if let Some(log) = &mut log {
            log.line(&json!({
                "step": done, "loss": loss, "cross_entropy": terms.cross_entropy, "hidden": terms.hidden,
                "logits": terms.logits, "gradient_norm": norm, "learning_rate": rate, "tokens": read,
                "seconds": seconds,
            }))?;
        }
        let at_end = done == options.steps;
        if let Some(examples) = &heldout
            && (at_end || (options.eval_every > 0 && done % options.eval_every == 0))
        {
            let loss = evaluate::loss(job.model, &branches, examples)?;
            let better = best.as_ref().is_none_or(|best| loss < best.loss);
            if better {
                best = Some(Best { step: done, loss, branches: branches.values()? });
            }
            progress(Event::Evaluated { step: done, loss, best: better });
            if let Some(log) = &mut log {
                log.line(&json!({"step": done, "heldout": {"loss": loss}}))?;
            }
        }
        if let Some(folder) = job.folder
            && options.checkpoint_every > 0
            && done % options.checkpoint_every == 0
            && !at_end
        {
            let checkpoint = Checkpoint {
                step: done,
                branches: branches.values()?,
                moments: optimizer.moments()?,
                best: best.clone(),
                start,
            };
            folder.save(&checkpoint, &names)?;
        }
    }
    if let Some(folder) = job.folder {
        folder.plot("loss")?;
    }
    let mut result = None;
    if let (Some(best), Some((rows, encoder))) = (best, &job.heldout) {
        branches = restore(&best.branches);
        let score = match (best.step, start) {
            (0, Some(score)) => score,
            _ => evaluate::score(job.model, &branches, encoder, rows)?,
        };
        result = Some((best.step, score));
    }
    let seconds = times.iter().sum::<f64>() + 0.0; // -0.0 is the sum of nothing
    times.sort_by(f64::total_cmp);
    let step_seconds = times.get(times.len() / 2).copied().unwrap_or(0.0);
    Ok(Outcome { branches, start, best: result, last, seconds, step_seconds, tokens })
}

/// Gradients of one step over one or more batches; the loss terms; tokens read.
fn step_gradients(
    (job, held): (&Job<'_>, usize),
    branches: &Branches,
    plan: &Plan,
    indices: &[usize],
    mut teacher: Option<&mut TeacherSource<'_>>,
) -> Result<(LossTerms, Vec<Tensor<2>>, usize)> {
    let (device, dtype) = (&job.model.device, job.model.dtype);
    let mut totals = Totals::default();
    let mut batches = Vec::new();
    for part in indices.chunks(job.options.batch) {
        totals.counted += part.iter().map(|index| job.examples[*index].counted()).sum::<usize>();
        let hidden = match &mut teacher {
            Some(teacher) => {
                let (hidden, square) = teacher.states.read(job.examples, part, device, dtype)?;
                totals.teacher_square += square;
                Some(hidden)
            }
            None => None,
        };
        batches.push((part, hidden));
    }
    let (mut terms, mut sum, mut tokens) = (LossTerms::default(), Vec::new(), 0);
    for (part, hidden) in batches {
        let examples: Vec<&Example> = part.iter().map(|index| &job.examples[*index]).collect();
        let batch = Batch::new(&examples, &job.model.recipe, device, dtype);
        let pass = Pass { model: job.model, branches, batch: &batch };
        let teacher = match (hidden, &teacher) {
            (Some(hidden), Some(source)) => {
                let head = Pass { model: source.model, branches: source.branches, batch: &batch };
                Some(Teacher { hidden, head })
            }
            _ => None,
        };
        let (part, gradients) = gradients(&pass, plan, held, teacher.as_ref(), &job.weights, &totals)?;
        terms.add(&part);
        tokens += batch.tokens;
        sum = match sum.is_empty() {
            true => gradients,
            false => sum.into_iter().zip(gradients).map(|(a, b): (Tensor<2>, _)| a + b).collect(),
        };
    }
    if !terms.total(&job.weights).is_finite() {
        bail!("the loss is not finite; lower the learning rate, or check the rows and the LoRA");
    }
    Ok((terms, sum, tokens))
}

fn heldout_examples(rows: &[Row], encoder: &Encoder<'_>) -> Result<Vec<Example>> {
    let examples: Vec<Vec<Example>> = rows.iter().map(|row| encoder.examples(row)).collect::<Result<_>>()?;
    Ok(examples.into_iter().flatten().collect())
}

/// The most memory this process has held, bytes; nothing where the system does not say.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
