//! `calora lora`: a plain LoRA on a model, compressed or not.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::DType;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::branches::Branches;
use super::checkpoint::RunFolder;
use super::data::Encoder;
use super::device::{self, DeviceChoice};
use super::loss::LossWeights;
use super::memory::largest_batch;
use super::options::TrainOptions;
use super::run::{Event, Job, Outcome, train};
use super::setup::{Base, layer_linears};
use super::{export, start};
use crate::rows;

/// What to train.
#[derive(Clone, Debug)]
pub struct LoraJob {
    /// The model folder.
    pub model: PathBuf,
    /// Training rows.
    pub data: PathBuf,
    /// Rows for evaluation.
    pub heldout: Option<PathBuf>,
    /// Only the first of them.
    pub heldout_limit: Option<usize>,
    /// The PEFT folder to write.
    pub out: PathBuf,
    /// A LoRA to go on from.
    pub init: Option<PathBuf>,
    /// Rank of a fresh one.
    pub rank: usize,
    /// Alpha of a fresh one: scaling is alpha / rank.
    pub alpha: f32,
    /// Where checkpoints, log and plot go.
    pub run: PathBuf,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Steps and so on.
    pub options: TrainOptions,
}

/// What a job reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Steps of the run.
    pub steps: usize,
    /// Rows trained on.
    pub rows: usize,
    /// Rows left out because they are longer than `max_length`.
    pub left_out: usize,
    /// Seconds of training steps in this process.
    pub seconds: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Tokens read a second.
    pub tokens_per_second: f64,
    /// Numbers that are trained.
    pub trainable_parameters: usize,
    /// Bytes of the branches as written.
    pub bytes: u64,
    /// The most memory that this process held, bytes.
    pub peak_memory: Option<u64>,
    /// Loss of the last step.
    pub train_loss: f64,
    /// On the held-out rows.
    pub heldout: Option<HeldoutReport>,
}

/// Held-out scores of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct HeldoutReport {
    /// Before the first step: of `adapt`, the training-free state.
    pub start: super::evaluate::Score,
    /// Of the state that is written.
    pub best: BestReport,
}

/// The state that is written.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct BestReport {
    /// After this many steps.
    pub step: usize,
    /// Its score.
    #[serde(flatten)]
    pub score: super::evaluate::Score,
}

/// Trains and writes a LoRA.
pub fn lora(job: &LoraJob, progress: &mut dyn FnMut(Event)) -> Result<Report> {
    job.options.check()?;
    if job.rank == 0 || !(job.alpha.is_finite() && job.alpha > 0.0) {
        bail!("--rank {} --alpha {}: expected positive numbers", job.rank, job.alpha);
    }
    let base = Base::open(&job.model)?;
    let encoder = Encoder {
        tokenizer: &base.tokenizer,
        max_length: job.options.max_length,
        vocab: base.recipe.shape.vocab,
    };
    let train_rows = rows::read(&job.data, None)?;
    let (examples, left_out) = encoder.training(&train_rows, &job.data)?;
    let heldout = job.heldout.as_ref().map(|path| rows::read(path, job.heldout_limit)).transpose()?;
    let (device, _) = device::open(job.device)?;
    let place = (&device, DType::F32);
    let tokens = largest_batch(&examples, job.options.batch);
    let frozen = base.frozen(&device, DType::F32, tokens, job.options.memory)?;
    let branches = match &job.init {
        Some(path) => Branches::from_tail(&base.lora(path)?.1, &device, DType::F32)?,
        None => {
            let linears = layer_linears(&base.recipe);
            start::lora(&base.recipe, &linears, (job.rank, job.alpha), job.options.seed, place)
        }
    };
    let settings = json!({
        "command": "lora", "model": base.id(), "data": digest(&examples)?, "init": job.init, "rank": job.rank,
        "alpha": job.alpha, "options": job.options, "heldout": job.heldout, "heldout_limit": job.heldout_limit,
    });
    let folder = RunFolder::open(&job.run, &settings)?;
    let outcome = train(
        Job {
            model: &frozen,
            branches,
            examples: &examples,
            heldout: heldout.as_ref().map(|rows| (rows.as_slice(), encoder)),
            weights: LossWeights::default(),
            options: &job.options,
            folder: Some(&folder),
        },
        None,
        progress,
    )?;
    export::peft(&job.out, &base.recipe, &outcome.branches, &job.model)?;
    let bytes = 4 * outcome.branches.parameters() as u64;
    folder.finish();
    Ok(report(&outcome, job.options.steps, (examples.len(), left_out), bytes))
}

/// The report of an outcome.
pub(super) fn report(
    outcome: &Outcome,
    steps: usize,
    (rows, left_out): (usize, usize),
    bytes: u64,
) -> Report {
    let heldout = outcome.start.zip(outcome.best);
    Report {
        steps,
        rows,
        left_out,
        seconds: outcome.seconds,
        step_seconds: outcome.step_seconds,
        tokens_per_second: outcome.tokens as f64 / outcome.seconds.max(1e-9),
        trainable_parameters: outcome.branches.parameters(),
        bytes,
        peak_memory: super::run::peak_memory(),
        train_loss: outcome.last.cross_entropy,
        heldout: heldout
            .map(|(start, (step, score))| HeldoutReport { start, best: BestReport { step, score } }),
    }
}

/// A hash of examples: what a run and a teacher's states depend on.
pub(super) fn digest(examples: &[super::data::Example]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for example in examples {
        hasher.update(&(example.first as u64).to_le_bytes());
        hasher.update(&(example.ids.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&example.ids));
    }
    Ok(hasher.finalize().to_hex().to_string())
}
