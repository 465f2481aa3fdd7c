//! `calora pack`: PEFT LoRAs as one task file, without training.

use std::path::PathBuf;

use anyhow::{Result, bail};
use calora::adapter::{BranchStorage, TaskAdapter};
use calora::weights::ModelFolder;
use calora_models::pack::{PackOptions, pack};

use crate::output;

/// Packs PEFT folders into one task file that is bound to its base.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// PEFT folders; several become one adapter, their weighted sum.
    #[arg(required = true)]
    adapters: Vec<PathBuf>,
    /// The model folder that they were trained on, compressed or not.
    #[arg(long)]
    base: PathBuf,
    /// The task file to write.
    #[arg(long)]
    out: PathBuf,
    /// The task's name.
    #[arg(long)]
    name: Option<String>,
    /// A factor for each folder, separated by commas.
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true)]
    weights: Vec<f32>,
    /// Store the branches as int8 instead of f16: half the bytes.
    #[arg(long)]
    int8: bool,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.out.exists() && !args.force {
        bail!("{} exists; name another file or say --force", args.out.display());
    }
    let folder = ModelFolder::open(&args.base)?;
    let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
    let adapters = args.adapters.iter().map(TaskAdapter::open).collect::<Result<Vec<_>, _>>()?;
    let options = PackOptions {
        name: args.name.clone(),
        weights: args.weights.clone(),
        storage: if args.int8 { BranchStorage::Int8 } else { BranchStorage::F16 },
    };
    let coverage = pack(&adapters, &recipe, &folder.ids()?, &args.out, &options)?;
    output::piece(&coverage.to_string())?;
    let size = std::fs::metadata(&args.out)?.len();
    output::line(format!("wrote {} ({})", args.out.display(), output::bytes(size)))
}
