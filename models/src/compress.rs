//! Compressing a Hugging Face folder: linears become integers, everything else is copied.
//!
//! The result is a compressed-tensors `pack-quantized` folder that transformers, vLLM and calora load. Groups that do
//! not divide a linear's input width are refused by that format, so such a linear is stored per channel. Memory stays at
//! about one tensor: tensors go from the mapped source to the file one by one.

mod config;
mod plan;
mod write;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use calora::quant::{Bits, Group, Scheme};
use calora::weights::{BaseIds, ModelFolder};

pub use plan::{Action, Plan};

/// What is compressed and how.
#[derive(Clone, Debug, PartialEq)]
pub struct CompressOptions {
    /// Bits, group and symmetry of the linears.
    pub scheme: Scheme,
    /// Modules kept as they are: paths, or their ends after a dot.
    pub ignore: Vec<String>,
}

impl CompressOptions {
    /// Symmetric rounding of every linear but the head; `None` for one scale a row.
    pub fn new(bits: Bits, group: Option<usize>) -> Self {
        let group = group.map_or(Group::Channel, Group::Size);
        Self { scheme: Scheme { bits, group, symmetric: true }, ignore: vec!["lm_head".into()] }
    }
}

/// What a compression made.
#[derive(Clone, Debug, PartialEq)]
pub struct Compressed {
    /// Bytes of the source's tensors.
    pub source_bytes: u64,
    /// Bytes of the result's.
    pub bytes: u64,
    /// Linears compressed.
    pub linears: usize,
    /// Linears stored per channel because the group does not divide their width.
    pub per_channel: Vec<String>,
    /// Ids of the source and of the result.
    pub ids: BaseIds,
}

/// Files of a model folder that go along unchanged.
const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
];

/// Compresses `source` into the folder `out`, which must not exist or be empty; it appears whole or not at all.
///
/// `tick` is called with the bytes of the source done and their total.
pub fn compress(
    source: &Path,
    out: &Path,
    options: &CompressOptions,
    tick: impl Fn(u64, u64),
) -> Result<Compressed> {
    refuse_occupied(out)?;
    let folder = ModelFolder::open(source)?;
    if folder.quantization().is_some() {
        bail!("{} is compressed already; compress the original", source.display());
    }
    let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
    let plan = Plan::new(&folder, &recipe, options)?;
    let source_id = folder.ids()?.source.unwrap_or_default();

    let partial = partial_name(out)?;
    if partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| partial.display().to_string())?;
    }
    std::fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    let written = (|| {
        let config = config::compressed(folder.config(), options, &plan);
        std::fs::write(partial.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        for name in COMPANIONS {
            let file = source.join(name);
            if file.exists() {
                std::fs::copy(&file, partial.join(name)).with_context(|| file.display().to_string())?;
            }
        }
        let result =
            write::tensors(&folder, &plan, &config, &source_id, &partial.join("model.safetensors"), &tick)?;
        if out.exists() {
            std::fs::remove_dir(out)?;
        }
        std::fs::rename(&partial, out).with_context(|| out.display().to_string())?;
        Ok(result)
    })();
    if written.is_err() {
        // The half-written folder helps nobody; that it could not be removed adds nothing to the first error.
        let _ = std::fs::remove_dir_all(&partial);
    }
    written
}

fn refuse_occupied(out: &Path) -> Result<()> {
    let occupied = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(e).with_context(|| out.display().to_string()),
    };
    if occupied {
        bail!("{} is not empty; name a new folder", out.display());
    }
    Ok(())
}

/// A sibling of the result, on the same file system, so that renaming is atomic.
fn partial_name(out: &Path) -> Result<PathBuf> {
    let mut name = out.file_name().with_context(|| format!("{} names no folder", out.display()))?.to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    Ok(out.with_file_name(name))
}
