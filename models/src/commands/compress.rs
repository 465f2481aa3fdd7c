//! `calora compress`: a Hugging Face folder as int8 or int4.

use std::path::PathBuf;

use anyhow::{Result, bail};
use calora_models::compress::{CompressOptions, compress};
use clap::ValueEnum;

use crate::output;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemeArg {
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
    /// 3 bits: not written yet.
    Int3,
    /// 2 bits: not written yet.
    Int2,
}

/// Compresses the linears of a model; what transformers with compressed-tensors, vLLM and calora load.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Hugging Face folder.
    source: PathBuf,
    /// The folder to write; it must not exist, or be empty.
    out: PathBuf,
    /// Bits of a weight.
    #[arg(long, value_enum)]
    scheme: SchemeArg,
    /// Weights that share a scale: 32, 64, 128, or `channel` for a whole row.
    #[arg(long, default_value = "32")]
    group_size: String,
    /// How weights are rounded; `rtn` is round-to-nearest with a searched scale.
    #[arg(long, default_value = "rtn", value_parser = ["rtn"])]
    method: String,
}
