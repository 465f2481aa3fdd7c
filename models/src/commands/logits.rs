//! `calora logits`: the numbers behind a text, for parity checks.

use std::path::PathBuf;

use anyhow::{Context, Result};
use calora::weights::{DType, Tensor};

use super::{ActivationArg, AdapterArgs, LoadArgs};

/// Writes the logits after every given token id.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model folder.
    model: PathBuf,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    ids: Vec<u32>,
    /// The safetensors file to write: tensor `logits`, f32, (tokens, vocabulary).
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // Parity is about the reference mode unless told otherwise.
    let activations = match args.load.activations {
        ActivationArg::Auto => ActivationArg::F32,
        other => other,
    };
    let engine = LoadArgs { activations, ..args.load.clone() }.load(&args.model)?;
    let adapters = args.adapters.open(&engine)?;
    let logits = engine.logits(&args.ids, &adapters)?;
    let shape = [args.ids.len(), logits.len() / args.ids.len()];
    let tensor = Tensor::from_f32("logits", &shape, &logits)?;
    debug_assert_eq!(tensor.dtype, DType::F32);
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), tensor.bytes())?;
    safetensors::serialize_to_file([("logits", view)], None, &args.out)
        .with_context(|| format!("{}: cannot be written", args.out.display()))
}
