//! `calora adapt`: an existing LoRA on a compressed model, repaired.

use std::path::PathBuf;

use anyhow::Result;
use calora_models::train::adapt::{AdaptJob, Init, Recovery, adapt};
use calora_models::train::loss::LossWeights;
use clap::ValueEnum;

use super::train::{Progress, TrainArgs, print};

/// `--init`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum InitArg {
    /// Recovery changes nothing at first.
    Zero,
    /// Low-rank factors of what compression lost, weighted by the inputs of calibration rows.
    Residual,
}

/// `--recovery`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum RecoveryArg {
    /// A GELU between the two matrices, as in the paper.
    Gelu,
    /// Nothing between them: folds into a LoRA.
    Linear,
}

/// `--distill`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DistillArg {
    /// The last hidden states.
    Hidden,
    /// The logits.
    Logits,
    /// Both.
    Both,
}

/// Repairs a task on a compressed model (CA-LoRA): inherits its LoRA, adds recovery branches, distils from the
/// uncompressed model. Without --lora: a base recovery, shared by all tasks.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The uncompressed model, which teaches.
    base: PathBuf,
    /// The compressed model.
    compressed: PathBuf,
    /// The LoRA of the uncompressed model: a PEFT folder or a LoRA task file.
    #[arg(long)]
    lora: Option<PathBuf>,
    /// The task file to write.
    #[arg(long)]
    out: PathBuf,
    /// The task's name; else the LoRA's.
    #[arg(long)]
    name: Option<String>,
    /// Optimizer steps.
    #[arg(long, default_value_t = 100)]
    steps: usize,
    /// No training: the LoRA and what the weights alone tell of the loss; the same as --steps 0.
    #[arg(long)]
    train_free: bool,
    /// Peak learning rate.
    #[arg(long = "lr", default_value_t = 2e-3)]
    learning_rate: f64,
    /// Begin from a fresh LoRA.
    #[arg(long)]
    no_inherit: bool,
    /// No recovery branches.
    #[arg(long)]
    no_recover: bool,
    /// No teacher.
    #[arg(long)]
    no_distill: bool,
    /// How recovery branches begin.
    #[arg(long, value_enum, default_value = "residual")]
    init: InitArg,
    /// The kind of recovery branches.
    #[arg(long, value_enum, default_value = "gelu")]
    recovery: RecoveryArg,
    /// Their rank; unless told, 32 for a width of 2,048 and in proportion.
    #[arg(long)]
    recovery_rank: Option<usize>,
    /// Weight of the distillation.
    #[arg(long, default_value_t = 8.0)]
    lambda: f64,
    /// What is distilled.
    #[arg(long, value_enum, default_value = "hidden")]
    distill: DistillArg,
    /// Rows whose inputs weigh the residual; the training rows unless told.
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// With --recovery linear: write one plain LoRA, a PEFT folder.
    #[arg(long)]
    fold: bool,
    #[command(flatten)]
    train: TrainArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let weight = |on: bool| if on && !args.no_distill { args.lambda } else { 0.0 };
    let steps = if args.train_free { 0 } else { args.steps };
    let job = AdaptJob {
        base: args.base.clone(),
        compressed: args.compressed.clone(),
        lora: args.lora.clone(),
        data: args.train.data.clone(),
        heldout: args.train.heldout.clone(),
        heldout_limit: args.train.heldout_limit,
        calibration: args.calibration.clone(),
        out: args.out.clone(),
        fold: args.fold,
        inherit: !args.no_inherit,
        recovery: (!args.no_recover).then_some((
            match args.recovery {
                RecoveryArg::Gelu => Recovery::Gelu,
                RecoveryArg::Linear => Recovery::Linear,
            },
            args.recovery_rank,
        )),
        init: match args.init {
            InitArg::Zero => Init::Zero,
            InitArg::Residual => Init::Residual,
        },
        distill: LossWeights {
            hidden: weight(!matches!(args.distill, DistillArg::Logits)),
            logits: weight(!matches!(args.distill, DistillArg::Hidden)),
        },
        name: args.name.clone(),
        run: args.train.run_folder(&args.out),
        device: args.train.device()?,
        options: args.train.options(steps, args.learning_rate),
    };
    let mut progress = Progress::new(steps);
    let report = adapt(&job, &mut |event| progress.show(event))?;
    progress.finish();
    print(&report, args.train.json, &args.out)
}
