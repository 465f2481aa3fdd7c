//! `calora lora`: a plain LoRA.

use std::path::PathBuf;

use anyhow::Result;
use calora_models::train::lora::{LoraJob, lora};

use super::train::{Progress, TrainArgs, print};

/// Trains a LoRA on all linears of a model, compressed or not, into a PEFT folder.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model folder.
    model: PathBuf,
    /// The PEFT folder to write.
    #[arg(long)]
    out: PathBuf,
    /// A LoRA to go on from.
    #[arg(long)]
    init: Option<PathBuf>,
    /// Rank.
    #[arg(long, default_value_t = 8)]
    rank: usize,
    /// The branch is scaled by alpha / rank; twice the rank unless told.
    #[arg(long)]
    alpha: Option<f32>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 300)]
    steps: usize,
    /// Peak learning rate.
    #[arg(long = "lr", default_value_t = 4e-3)]
    learning_rate: f64,
    #[command(flatten)]
    train: TrainArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let job = LoraJob {
        model: args.model.clone(),
        data: args.train.data.clone(),
        heldout: args.train.heldout.clone(),
        heldout_limit: args.train.heldout_limit,
        out: args.out.clone(),
        init: args.init.clone(),
        rank: args.rank,
        alpha: args.alpha.unwrap_or(2.0 * args.rank as f32),
        run: args.train.run_folder(&args.out),
        device: args.train.device()?,
        options: args.train.options(args.steps, args.learning_rate),
    };
    let mut progress = Progress::new(args.steps);
    let report = lora(&job, &mut |event| progress.show(event))?;
    progress.finish();
    print(&report, args.train.json, &args.out)
}
