//! `calora pack`: PEFT LoRAs as one task file, without training.

use std::path::PathBuf;

use anyhow::Result;
use calora::adapter::{BranchStorage, TaskAdapter};
use calora::weights::ModelFolder;
use calora_models::pack::{PackOptions, TaskDescription, pack_bytes};
use zeroize::Zeroizing;

use super::protect::{ProtectArgs, refuse_overwriting};
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
    #[command(flatten)]
    protect: ProtectArgs,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    refuse_overwriting(&args.out, args.force)?;
    let folder = ModelFolder::open(&args.base)?;
    let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
    let adapters = args.adapters.iter().map(TaskAdapter::open).collect::<Result<Vec<_>, _>>()?;
    let options = PackOptions {
        name: args.name.clone(),
        weights: args.weights.clone(),
        storage: if args.int8 { BranchStorage::Int8 } else { BranchStorage::F16 },
    };
    let ids = folder.ids()?;
    let task_file = Zeroizing::new(pack_bytes(&adapters, &recipe, &ids, &args.out, &options)?);
    let (_, coverage) = TaskAdapter::from_bytes(&args.out, &task_file)?.bind(&recipe, &ids)?;
    output::piece(&coverage.to_string())?;
    let example = TaskDescription::read(&args.adapters[0])?.examples.into_iter().next();
    args.protect.write(&task_file, Some(&args.base), example.as_deref(), &args.out)
}
