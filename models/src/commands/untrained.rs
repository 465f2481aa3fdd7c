//! `calora lora` and `calora adapt` of a build without training.

use anyhow::{Result, bail};

/// Training is not in this build; `cargo build --release -p calora-models --features train` makes one that has it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Whatever it was asked for.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    bail!(
        "this calora was built without training (asked for: {}); build it with\n\
         \n    cargo build --release -p calora-models --features train\n\n\
         which takes some minutes, or with train-gpu to train on any GPU, train-cuda for NVIDIA's own stack",
        if args.rest.is_empty() { "nothing more".to_owned() } else { args.rest.join(" ") }
    )
}
