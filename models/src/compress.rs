//! Compression of a Hugging Face folder to int8 or int4: another folder, in the layout of compressed-tensors, that this
//! engine, transformers and vLLM load. Int3 and int2 are calora's extension of that layout ([`calora::quant`]).
//!
//! Tensors stream through row blocks, so memory stays near one block however large the model is. Invariant: OUT
//! appears whole or not at all. The plan is in `plan.rs`, the file in `writer.rs`.

mod plan;
mod writer;

use std::fs;
use std::path::{Path, PathBuf};

use calora::quant::round::{RoundedRow, round_row};
use calora::quant::{Bits, Group, Scheme, pack::pack_row};
use calora::weights::{BaseIds, ModelFolder, id};
use calora::{Error, Result};
use rayon::prelude::*;

use plan::{Linear, Plan};
use writer::{Folder, Writer};

/// How integers and scales are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    /// Round to nearest, with the scale of least squared error among a few.
    #[default]
    Rtn,
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
}

impl CompressOptions {
    /// Symmetric, in groups of this many (none: a scale a row), the head kept.
    pub fn new(bits: Bits, group: Option<usize>) -> Self {
        let scheme = Scheme { bits, group: group.map_or(Group::Channel, Group::Size), symmetric: true };
        Self { scheme, method: Method::Rtn, ignore: Vec::new(), head: Head::Keep }
    }
}

/// What was done.
#[derive(Clone, Debug)]
pub struct CompressReport {
    /// The source's id and the new folder's.
    pub ids: BaseIds,
    /// How many linears were compressed.
    pub linears: usize,
    /// Those of them whose width the group does not divide, stored with a scale a row.
    pub per_channel: Vec<String>,
    /// Linears left as they were.
    pub kept: Vec<String>,
    /// Bytes of the source's weights.
    pub source_bytes: u64,
    /// Bytes of the new weights.
    pub bytes: u64,
    /// `Σ (w - Q(w))² / Σ w²` over the compressed weights.
    pub relative_error: f64,
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
    let target = Folder::create(out)?;
    let source_bytes: u64 = folder
        .tensors()
        .names()
        .filter_map(|name| folder.tensors().raw(name))
        .map(|(_, _, bytes)| bytes.len() as u64)
        .sum();
    let at = |pass: u64, done: u64| progress(pass * source_bytes + done, 3 * source_bytes);
    let source = folder.ids_with(&|done, _| at(0, done))?.source.unwrap_or_default();
    let plan = Plan::make(&folder, options, &|done| at(1, done))?;

    let config_id = id::config_id(&plan.config);
    let pending = format!("blake3:{}", "0".repeat(64));
    let path = target.path().join("model.safetensors");
    let metadata = |compressed: &str| id::metadata(&source, compressed, &config_id);
    let mut writer = Writer::create(&path, &plan.outputs, &metadata(&pending))?;
    let (mut done, mut error, mut power) = (0, 0.0, 0.0);
    for (output, name) in &plan.kept {
        let (_, _, bytes) = raw(&folder, name)?;
        for chunk in bytes.chunks(8 << 20) {
            writer.append(*output, chunk)?;
        }
        done += bytes.len() as u64;
        at(2, done);
    }
    for linear in &plan.linears {
        let sums = write_linear(&mut writer, linear)?;
        error += sums.0;
        power += sums.1;
        done += linear.weight.bytes().len() as u64;
        at(2, done);
    }
    let (digests, bytes) = writer.finish_tensors()?;
    let compressed = id::id(&config_id, &digests);
    writer.finish(&metadata(&compressed))?;

    target.write_json("config.json", &plan.config)?;
    copy_companions(src, target.path())?;
    target.publish()?;
    Ok(CompressReport {
        ids: BaseIds { source: Some(source), compressed: Some(compressed) },
        linears: plan.linears.len(),
        per_channel: plan.per_channel(options.scheme.group),
        kept: plan.kept_linears,
        source_bytes,
        bytes,
        relative_error: if power > 0.0 { error / power } else { 0.0 },
    })
}

/// Rounds and writes one linear; returns the sums of squared errors and of squared weights.
fn write_linear(writer: &mut Writer, linear: &Linear) -> Result<(f64, f64)> {
    let Linear { weight, scheme, scale_type, cols, rows, .. } = linear;
    let (groups, mut error, mut power) = (scheme.groups(*cols), 0.0, 0.0);
    let mut zeros = Vec::new();
    let block = (4_000_000 / cols.max(&1)).max(1);
    for start in (0..*rows).step_by(block) {
        let end = (start + block).min(*rows);
        let values = weight.to_f32_range(start * cols..end * cols)?;
        let rounded: Vec<RoundedRow> =
            values.par_chunks(*cols).map(|row| round_row(*scheme, *scale_type, row)).collect();
        power += values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        for row in &rounded {
            error += row.squared_error;
            writer.append(linear.words, bytemuck::cast_slice(&row.words))?;
            writer.append(linear.scales, &plan::scale_bytes(*scale_type, &row.scales))?;
            zeros.extend_from_slice(&row.zero_points);
        }
    }
    let shape = [*rows as i64, *cols as i64];
    writer.append(linear.shape, bytemuck::cast_slice(&shape))?;
    if let Some(output) = linear.zero_points {
        writer.append(output, bytemuck::cast_slice(&pack_columns(scheme.bits, &zeros, groups)))?;
    }
    Ok((error, power))
}

/// (R, groups) zero points to (ceil(R * bits / 32), groups) words, packed along the rows.
fn pack_columns(bits: Bits, zeros: &[u8], groups: usize) -> Vec<u32> {
    let rows = zeros.len() / groups.max(1);
    let words = bits.words(rows);
    let mut out = vec![0; words * groups];
    let mut column = Vec::with_capacity(words);
    for g in 0..groups {
        let values: Vec<u8> = zeros.iter().skip(g).step_by(groups).copied().collect();
        column.clear();
        pack_row(bits, &values, &mut column);
        for (r, word) in column.iter().enumerate() {
            out[r * groups + g] = *word;
        }
    }
    out
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
            let to = out.join(name);
            fs::write(&to, content).map_err(|e| io(&to, e))?;
        }
    }
    Ok(())
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: PathBuf::from(path), source }
}

fn option(option: &str, value: impl std::fmt::Display, reason: impl std::fmt::Display) -> Error {
    Error::InvalidOption { option: option.into(), value: value.to_string(), reason: reason.to_string() }
}
