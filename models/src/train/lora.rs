//! `calora lora`: a plain LoRA on a model, compressed or not.

use std::path::PathBuf;

use anyhow::{Result, bail};
use burn::tensor::DType;
use serde_json::json;

use super::branches::Branches;
use super::checkpoint::RunFolder;
use super::data::digest;
use super::device::{self, DeviceChoice};
use super::loss::LossWeights;
use super::memory::largest_batch;
use super::options::TrainOptions;
use super::report::Report;
use super::run::{Event, Job, train};
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

/// Trains and writes a LoRA.
pub fn lora(job: &LoraJob, progress: &mut dyn FnMut(Event)) -> Result<Report> {
    job.options.check()?;
    if job.rank == 0 || !(job.alpha.is_finite() && job.alpha > 0.0) {
        bail!("--rank {} --alpha {}: expected positive numbers", job.rank, job.alpha);
    }
    let base = Base::open(&job.model)?;
    let encoder = base.encoder(job.options.max_length);
    let (examples, left_out) = encoder.training(&rows::read(&job.data, None)?, &job.data)?;
    let heldout = job.heldout.as_ref().map(|path| rows::read(path, job.heldout_limit)).transpose()?;
    let device = device::open(job.device)?;
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
    let init = job.init.is_some().then(|| branches.digest()).transpose()?;
    let settings = json!({
        "command": "lora", "model": base.id(), "data": digest(&examples)?, "init": init, "rank": job.rank,
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
    Ok(Report::new(&outcome, job.options.steps, (examples.len(), left_out), bytes))
}
