//! `calora compress`: a Hugging Face folder as int8, int4, int3 or int2.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use calora::engine::{DeviceChoice, Engine, EngineOptions};
use calora::quant::Bits;
use calora::text::{Tokenizer, TokenizerConfig};
use calora::weights::ModelFolder;
use calora_models::calibrate::sequences;
use calora_models::compress::{CompressOptions, CompressReport, DEFAULT_DAMPING, Head, Method, compress};
use calora_models::rows;
use clap::ValueEnum;

use crate::output;

/// The longest calibration sequence, which is also all the attention that it has.
const CALIBRATION_WINDOW: usize = 2048;
/// The longest sampled sequence: further on, small models repeat themselves.
const SAMPLE_WINDOW: usize = 256;

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

impl From<SchemeArg> for Bits {
    fn from(scheme: SchemeArg) -> Self {
        match scheme {
            SchemeArg::Int8 => Self::Int8,
            SchemeArg::Int4 => Self::Int4,
            SchemeArg::Int3 => Self::Int3,
            SchemeArg::Int2 => Self::Int2,
        }
    }
}

/// How weights are rounded.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodArg {
    /// To the nearest level, with the scale of least squared error.
    Rtn,
    /// Each weight after what the errors before it do to outputs on calibration text: better at every size below int8.
    Gptq,
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
    /// How weights are rounded.
    #[arg(long, value_enum, default_value = "rtn")]
    method: MethodArg,
    /// Rows of text, JSON a line as `eval` reads them, that run through the model: for gptq, and to report how far outputs
    /// move. Not what is evaluated on later.
    #[arg(long, value_name = "ROWS.jsonl")]
    calibration: Option<PathBuf>,
    /// Calibrate on text that the uncompressed model samples itself, where there is no other.
    #[arg(long, conflicts_with = "calibration")]
    calibration_self: bool,
    /// The most calibration tokens; rows beyond are left out.
    #[arg(long, default_value_t = 65_536)]
    calibration_tokens: usize,
    /// GPTQ adds this part of the mean second moment to each; more trusts the calibration text less.
    #[arg(long, default_value_t = DEFAULT_DAMPING)]
    damping: f64,
    /// Other bits for some linears: `PATTERN=int2`, the pattern as for --ignore; the first that matches counts.
    #[arg(long, value_name = "PATTERN=SCHEME", value_parser = exception)]
    scheme_for: Vec<(String, Bits)>,
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
    let group = match args.group_size.as_str() {
        "channel" => None,
        size => Some(
            size.parse().with_context(|| format!("--group-size {size}: expected 32, 64, 128 or channel"))?,
        ),
    };
    let mut options = CompressOptions::new(args.scheme.into(), group);
    options.scheme.symmetric = !args.asymmetric;
    options.ignore.clone_from(&args.ignore);
    options.head = match args.head {
        HeadArg::Keep => Head::Keep,
        HeadArg::Int8 => Head::Int8,
    };
    options.method = match args.method {
        MethodArg::Rtn => Method::Rtn,
        MethodArg::Gptq => Method::Gptq,
    };
    options.exceptions.clone_from(&args.scheme_for);
    options.damping = args.damping;
    if let Some(path) = &args.calibration {
        options.calibration = calibration(&args.source, path, args.calibration_tokens)?;
    }
    if args.calibration_self {
        options.calibration = sampled(&args.source, args.calibration_tokens)?;
    }
    let bar = output::progress(0, "compress");
    let result = compress(&args.source, &args.out, &options, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if args.json {
        return output::json(&json(&result));
    }
    output::line(format!(
        "{} linears, {} -> {}: {:.2} bits a weight in them, {:.2} a parameter over the whole model",
        result.linears.len(),
        output::bytes(result.source_bytes),
        output::bytes(result.bytes),
        result.bits_per_weight(),
        result.bits_per_parameter(),
    ))?;
    if !result.per_channel.is_empty() {
        output::line(format!(
            "{} linears are stored per channel: the group does not divide their width",
            result.per_channel.len()
        ))?;
    }
    output::line(format!("weights are off by {:.3} % of their squares", 100.0 * result.relative_error))?;
    let outputs = result.linears.iter().filter_map(|l| Some((l.output_error?, &l.path)));
    if let Some((error, path)) = outputs.max_by(|a, b| a.0.total_cmp(&b.0)) {
        output::line(format!("outputs by at most {:.3} % of theirs, in {path}", 100.0 * error))?;
    }
    output::line(format!("wrote {}", args.out.display()))
}

/// `PATTERN=SCHEME`.
fn exception(text: &str) -> Result<(String, Bits), String> {
    let (pattern, scheme) = text.rsplit_once('=').ok_or("expected PATTERN=SCHEME, as in gate_proj=int2")?;
    Ok((pattern.to_owned(), SchemeArg::from_str(scheme, true)?.into()))
}

/// The rows of a file as sequences of at most the model's context, up to a number of tokens.
fn calibration(model: &Path, path: &Path, most: usize) -> Result<Vec<Vec<u32>>> {
    let folder = ModelFolder::open(model)?;
    let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
    let tokenizer = Tokenizer::load(model, &TokenizerConfig::load(model)?)?;
    let rows = rows::read(path, None)?;
    let mut sequences = sequences(&tokenizer, &rows, recipe.shape.context.min(CALIBRATION_WINDOW))?;
    let mut tokens = 0;
    sequences.retain(|ids| {
        tokens += ids.len();
        tokens <= most
    });
    Ok(sequences)
}

/// Text that the model samples itself, as much as was asked for.
fn sampled(model: &Path, tokens: usize) -> Result<Vec<Vec<u32>>> {
    let engine = Engine::load(model, EngineOptions { device: DeviceChoice::Cpu, ..Default::default() })?;
    let start = engine.tokenizer()?.bos();
    let start = start.context("--calibration-self: the tokenizer has no token that starts a text")?;
    let bar = output::progress(tokens as u64, "sample");
    let window = engine.model_info().context_size.min(SAMPLE_WINDOW);
    let sequences =
        calora_models::calibrate::sampled(&engine, start, tokens, window, |n| bar.set_position(n as u64))?;
    bar.finish_and_clear();
    Ok(sequences)
}

fn json(result: &CompressReport) -> serde_json::Value {
    let linears = result.linears.iter().map(|l| {
        serde_json::json!({
            "path": l.path, "scheme": l.scheme.to_string(), "weights": l.weights, "bytes": l.bytes,
            "relative_error": l.relative_error, "output_error": l.output_error,
        })
    });
    serde_json::json!({
        "source_bytes": result.source_bytes, "bytes": result.bytes, "parameters": result.parameters,
        "bits_per_weight": result.bits_per_weight(), "bits_per_parameter": result.bits_per_parameter(),
        "linears": result.linears.len(), "per_channel": result.per_channel, "kept": result.kept,
        "relative_error": result.relative_error, "source_id": result.ids.source,
        "compressed_id": result.ids.compressed, "details": linears.collect::<Vec<_>>(),
    })
}
