//! Compression of a Hugging Face folder to int8 or int4: another folder, in the layout of compressed-tensors, that this
//! engine, transformers and vLLM load. Int3 and int2 are calora's extension of that layout ([`calora::quant`]).
//!
//! Tensors stream through row blocks, so memory stays near one block however large the model is; with calibration text
//! it is one stage of it ([`crate::calibrate`]). Invariant: OUT appears whole or not at all. What becomes of which tensor
//! is decided in `plan.rs`, weights are rounded in `rounder.rs` and `gptq.rs`, the file is in `writer.rs`.

mod gptq;
mod plan;
mod rounder;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};

use calora::quant::{Bits, Group, Scheme};
use calora::weights::{BaseIds, ModelFolder, id, write_atomically};
use calora::{Error, Result};

use plan::Plan;
use rounder::Rounder;
use writer::{Folder, Writer};

/// How integers and scales are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Round to nearest, with the scale of least squared error among a few.
    #[default]
    Rtn,
    /// GPTQ: each weight is rounded after what the errors before it do to the outputs on the calibration text.
    Gptq,
}

/// What happens to the head (which is also the embedding where the two are tied).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Head {
    /// It keeps its type.
    #[default]
    Keep,
    /// Int8 in the same groups. Where the head is also the embedding, only calora reads the result: transformers 5.23
    /// looks for the shared matrix uncompressed.
    Int8,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct CompressOptions {
    /// How linears are stored. Those whose input width the group does not divide get a scale a row instead. Symmetric
    /// schemes are what every reader loads: transformers 5.23 with compressed-tensors 0.20 fails on asymmetric folders,
    /// also on those that it wrote itself.
    pub scheme: Scheme,
    /// How to round.
    pub method: Method,
    /// Linears to keep: module paths, ends of them (`down_proj`), or patterns after `re:` that match from the start.
    pub ignore: Vec<String>,
    /// The head.
    pub head: Head,
    /// Bits of linears that differ from the scheme's: modules as in `ignore`, the first that matches counts.
    pub exceptions: Vec<(String, Bits)>,
    /// Token sequences that run through the model: [`Method::Gptq`] needs them, the others use them to report the error
    /// of outputs. Every layer sees what the layers before it give once compressed.
    pub calibration: Vec<Vec<u32>>,
    /// GPTQ raises the diagonal of its moments by this part of its mean.
    pub damping: f64,
}

/// The damping that GPTQ's authors use.
pub const DEFAULT_DAMPING: f64 = 0.01;

impl CompressOptions {
    /// Symmetric, in groups of this many (none: a scale a row), the head kept.
    pub fn new(bits: Bits, group: Option<usize>) -> Self {
        let scheme = Scheme { bits, group: group.map_or(Group::Channel, Group::Size), symmetric: true };
        Self {
            scheme,
            method: Method::Rtn,
            ignore: Vec::new(),
            head: Head::Keep,
            exceptions: Vec::new(),
            calibration: Vec::new(),
            damping: DEFAULT_DAMPING,
        }
    }
}

/// What became of one linear.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearReport {
    /// Its module path.
    pub path: String,
    /// How it is stored.
    pub scheme: Scheme,
    /// Its weights.
    pub weights: u64,
    /// Their bytes with all that is needed to read them.
    pub bytes: u64,
    /// `Σ (w - Q(w))² / Σ w²`.
    pub relative_error: f64,
    /// `Σ |(W - Q(W)) x|² / Σ |W x|²` over the calibration tokens, where there are any.
    pub output_error: Option<f64>,
}

/// What was done.
#[derive(Clone, Debug)]
pub struct CompressReport {
    /// The source's id and the new folder's.
    pub ids: BaseIds,
    /// The compressed linears.
    pub linears: Vec<LinearReport>,
    /// Those of them whose width the group does not divide, stored with a scale a row.
    pub per_channel: Vec<String>,
    /// Linears left as they were.
    pub kept: Vec<String>,
    /// Bytes of the source's weights.
    pub source_bytes: u64,
    /// Parameters of the whole model.
    pub parameters: u64,
    /// Bytes of the new weights.
    pub bytes: u64,
    /// `Σ (w - Q(w))² / Σ w²` over the compressed weights.
    pub relative_error: f64,
}

impl CompressReport {
    /// Bits a parameter takes on average over the whole model, everything counted: scales, embeddings, norms.
    pub fn bits_per_parameter(&self) -> f64 {
        8.0 * self.bytes as f64 / self.parameters.max(1) as f64
    }

    /// Bits a weight takes on average over the compressed linears, scales and zero points counted.
    pub fn bits_per_weight(&self) -> f64 {
        let sum = |of: fn(&LinearReport) -> u64| self.linears.iter().map(of).sum::<u64>() as f64;
        8.0 * sum(|l| l.bytes) / sum(|l| l.weights).max(1.0)
    }
}

/// Compresses the folder `src` into a new folder `out`. `progress` gets bytes read and to be read: the source is read
/// three times, for its id, for the range of its scales, and to be rounded.
pub fn compress(
    src: &Path,
    out: &Path,
    options: &CompressOptions,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<CompressReport> {
    let folder = ModelFolder::open(src)?;
    if folder.quantization().is_some() {
        let reason = "is compressed already; compress the model that it was made from";
        return Err(option("SRC", src.display(), reason));
    }
    check_options(options)?;
    let target = Folder::create(out)?;
    let (mut source_bytes, mut parameters) = (0, 0);
    for (_, shape, bytes) in folder.tensors().names().filter_map(|name| folder.tensors().raw(name)) {
        source_bytes += bytes.len() as u64;
        parameters += shape.iter().product::<usize>() as u64;
    }
    let at = |pass: u64, done: u64| progress(pass * source_bytes + done, 3 * source_bytes);
    let source = folder.ids_with(&|done, _| at(0, done))?.source.unwrap_or_default();
    let plan = Plan::make(&folder, options, &|done| at(1, done))?;

    let config_id = id::config_id(&plan.config);
    let pending = format!("blake3:{}", "0".repeat(64));
    let path = target.path().join("model.safetensors");
    let metadata = |compressed: &str| id::metadata(&source, compressed, &config_id);
    let mut writer = Writer::create(&path, &plan.outputs, &metadata(&pending))?;
    let mut done = 0;
    for (output, name) in &plan.kept {
        let (_, _, bytes) = raw(&folder, name)?;
        for chunk in bytes.chunks(8 << 20) {
            writer.append(*output, chunk)?;
        }
        done += bytes.len() as u64;
        at(2, done);
    }
    let mut progress = |bytes| {
        done += bytes;
        at(2, done);
    };
    let rounded = Rounder::new(options, &mut writer, &mut progress).round(&folder, &plan.linears)?;
    let (digests, bytes) = writer.finish_tensors()?;
    let compressed = id::id(&config_id, &digests);
    writer.finish(&metadata(&compressed))?;

    target.write_json("config.json", &plan.config)?;
    copy_companions(src, target.path())?;
    target.publish()?;
    Ok(CompressReport {
        ids: BaseIds { source: Some(source), compressed: Some(compressed) },
        linears: rounded.reports,
        per_channel: plan.per_channel(options.scheme.group),
        kept: plan.kept_linears,
        source_bytes,
        parameters,
        bytes,
        relative_error: rounded.error / rounded.power.max(f64::MIN_POSITIVE),
    })
}

/// A tensor's type, shape and bytes.
fn raw<'a>(folder: &'a ModelFolder, name: &str) -> Result<(&'a str, &'a [usize], &'a [u8])> {
    folder.tensors().raw(name).ok_or_else(|| Error::Tensor {
        path: folder.path().to_owned(),
        tensor: name.to_owned(),
        reason: "is missing".into(),
    })
}

/// Copies what a model folder has beside its weights: tokenizer, templates, generation settings, licence, card.
fn copy_companions(src: &Path, out: &Path) -> Result<()> {
    const NAMES: &[&str] = &[
        "added_tokens.json",
        "chat_template.json",
        "generation_config.json",
        "merges.txt",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    ];
    for entry in fs::read_dir(src).map_err(|e| io(src, e))? {
        let path = entry.map_err(|e| io(src, e))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let upper = name.to_ascii_uppercase();
        let legal =
            ["LICENSE", "LICENCE", "NOTICE", "README", "USE_POLICY"].iter().any(|p| upper.starts_with(p));
        if path.is_file() && (NAMES.contains(&name) || name.ends_with(".jinja") || legal) {
            // Read and written, not copied: a copy would also inherit read-only permissions.
            let content = fs::read(&path).map_err(|e| io(&path, e))?;
            write_atomically(&out.join(name), &content)?;
        }
    }
    Ok(())
}

/// Refuses what cannot work whatever the model is.
fn check_options(options: &CompressOptions) -> Result<()> {
    if options.method == Method::Gptq && options.calibration.is_empty() {
        return Err(option("calibration", "(none)", "gptq rounds against text that runs through the model"));
    }
    if !(options.damping > 0.0 && options.damping.is_finite()) {
        return Err(option("damping", options.damping, "must be above 0"));
    }
    Ok(())
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: PathBuf::from(path), source }
}

fn option(option: &str, value: impl std::fmt::Display, reason: impl std::fmt::Display) -> Error {
    Error::InvalidOption { option: option.into(), value: value.to_string(), reason: reason.to_string() }
}
