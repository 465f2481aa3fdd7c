//! `calora compress`: a Hugging Face folder as int8, int4, int3 or int2.

use std::path::PathBuf;

use anyhow::{Context, Result};
use calora::quant::Bits;
use calora_models::compress::{CompressOptions, Head, compress};
use clap::ValueEnum;

use crate::output;

/// Bits of a weight.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum SchemeArg {
    /// 8 bits.
    Int8,
    /// 4 bits.
    Int4,
    /// 3 bits; only calora reads the result.
    Int3,
    /// 2 bits; only calora reads the result.
    Int2,
}

/// The head's storage.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum HeadArg {
    /// As in the source.
    Keep,
    /// 8 bits, in the same groups; where head and embedding are one, only calora reads the result.
    Int8,
}

/// Compresses the linears of a model into a folder that transformers, vLLM and calora load (int3 and int2: calora).
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
    /// Store zero points; transformers does not load such a folder, calora and vLLM do.
    #[arg(long)]
    asymmetric: bool,
    /// A module to keep as it is, by its path or the end of it, or a pattern after `re:`.
    #[arg(long)]
    ignore: Vec<String>,
    /// What happens to the head (which is also the embedding where the two are tied).
    #[arg(long, value_enum, default_value = "keep")]
    head: HeadArg,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let bits = match args.scheme {
        SchemeArg::Int8 => Bits::Int8,
        SchemeArg::Int4 => Bits::Int4,
        SchemeArg::Int3 => Bits::Int3,
        SchemeArg::Int2 => Bits::Int2,
    };
    let group = match args.group_size.as_str() {
        "channel" => None,
        size => Some(
            size.parse().with_context(|| format!("--group-size {size}: expected 32, 64, 128 or channel"))?,
        ),
    };
    let mut options = CompressOptions::new(bits, group);
    options.scheme.symmetric = !args.asymmetric;
    options.ignore.clone_from(&args.ignore);
    options.head = match args.head {
        HeadArg::Keep => Head::Keep,
        HeadArg::Int8 => Head::Int8,
    };
    let bar = output::progress(0, "compress");
    let result = compress(&args.source, &args.out, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if args.json {
        return output::json(&serde_json::json!({
            "source_bytes": result.source_bytes, "bytes": result.bytes, "linears": result.linears,
            "per_channel": result.per_channel, "kept": result.kept, "relative_error": result.relative_error,
            "source_id": result.ids.source,
            "compressed_id": result.ids.compressed
        }));
    }
    output::line(format!(
        "{} linears, {} -> {}",
        result.linears,
        output::bytes(result.source_bytes),
        output::bytes(result.bytes)
    ))?;
    if !result.per_channel.is_empty() {
        output::line(format!(
            "{} linears are stored per channel: the group does not divide their width",
            result.per_channel.len()
        ))?;
    }
    output::line(format!("wrote {}", args.out.display()))
}
