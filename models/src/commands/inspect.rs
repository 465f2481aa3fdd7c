//! `calora inspect`: what a model, adapter or task file holds.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calora::adapter::protect::{self, is_encrypted};
use calora::adapter::{AdapterOptions, BranchKind, TaskAdapter};
use calora::weights::{BaseIds, ModelFolder, Storage};
use calora_models::keys::read_encryption_key;
use serde_json::{Value, json};

use crate::output;

/// Shows shapes, schemes, sizes, ids and what an adapter covers.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A model folder, a PEFT folder or a task file.
    path: PathBuf,
    /// The model that an adapter is meant for: shows what it covers there.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Opens an encrypted adapter; without it only that it is encrypted is known.
    #[arg(long, value_name = "KEYFILE")]
    key: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let is_model = args.path.join("config.json").exists();
    let report = if is_model { model(&args.path)? } else { adapter(args)? };
    if args.json {
        return output::json(&report);
    }
    print(&report, 0)
}

fn model(path: &Path) -> Result<Value> {
    let folder = ModelFolder::open(path)?;
    let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
    let weights = folder.weights(&recipe)?;
    let mut schemes = serde_json::Map::new();
    let (mut bytes, mut parameters) = (0, 0);
    for matrix in &weights.matrices {
        let scheme = match &matrix.storage {
            Storage::Dense(tensor) => format!("{:?}", tensor.dtype).to_lowercase(),
            Storage::Packed { scheme, .. } => scheme.to_string(),
        };
        let entry = schemes.entry(scheme).or_insert_with(|| json!({"matrices": 0, "bytes": 0}));
        entry["matrices"] = json!(entry["matrices"].as_u64().unwrap_or(0) + 1);
        entry["bytes"] = json!(entry["bytes"].as_u64().unwrap_or(0) + matrix.byte_len() as u64);
        bytes += matrix.byte_len();
        parameters += matrix.rows * matrix.cols;
    }
    let BaseIds { source, compressed } = folder.ids()?;
    let shape = &recipe.shape;
    Ok(json!({
        "kind": "model", "architecture": recipe.architecture, "parameters": parameters, "weight_bytes": bytes,
        "bits_per_weight": bytes as f64 * 8.0 / parameters as f64,
        "schemes": schemes, "source_id": source, "compressed_id": compressed,
        "shape": {
            "layers": shape.layers, "hidden": shape.hidden, "mlp": shape.mlp, "heads": shape.heads,
            "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "vocab": shape.vocab, "context": shape.context
        }
    }))
}

/// Who signed a task file, and whether the signature fits it.
fn signature(args: &Args, options: &AdapterOptions) -> Result<Value> {
    match protect::signer(&args.path, options.key.as_ref()) {
        Ok(Some(signer)) => Ok(json!({"valid": true, "signer": signer.to_string()})),
        Ok(None) => Ok(Value::Null),
        Err(calora::Error::Untrusted { reason, .. }) => Ok(json!({"valid": false, "reason": reason})),
        Err(error) => Err(error.into()),
    }
}

fn adapter(args: &Args) -> Result<Value> {
    let path = &args.path;
    let key = args.key.as_deref().map(read_encryption_key).transpose()?;
    if key.is_none() && is_encrypted(path) {
        let bytes = std::fs::metadata(path)?.len();
        return Ok(json!({"kind": "adapter", "encrypted": true, "file_bytes": bytes}));
    }
    let options = AdapterOptions { key, ..AdapterOptions::default() };
    let adapter = TaskAdapter::open_with(path, &options)?;
    let signature = if path.is_dir() { Value::Null } else { signature(args, &options)? };
    let info = adapter.info();
    let modules: serde_json::Map<String, Value> = adapter
        .modules()
        .map(|(module, branches)| {
            let list: Vec<Value> = branches
                .iter()
                .map(|b| {
                    let kind = match b.kind {
                        BranchKind::Lora => "lora",
                        BranchKind::Recovery => "recovery",
                        BranchKind::LinearRecovery => "linear recovery",
                    };
                    json!({"kind": kind, "rank": b.rank(), "scaling": b.scaling})
                })
                .collect();
            (module.to_owned(), list.into())
        })
        .collect();
    let mut report = json!({
        "kind": "adapter", "name": info.name, "description": info.description, "base": info.base,
        "bytes": adapter.byte_len(), "system_prompt": info.system_prompt, "stop": info.stop,
        "sampling": info.sampling, "max_tokens": info.max_tokens,
        "encrypted": info.encrypted, "signature": signature, "canary": info.canary, "modules": modules
    });
    if let Some(base) = &args.base {
        let folder = ModelFolder::open(base)?;
        let recipe = calora::arch::recipe(folder.config(), folder.config_path())?;
        let (_, coverage) = adapter.bind(&recipe, &folder.ids()?)?;
        report["coverage"] = json!({
            "base": format!("{:?}", coverage.base).to_lowercase(),
            "touched": coverage.touched.len(), "untouched": coverage.untouched,
            "idle": coverage.idle, "missing": coverage.missing, "unchecked": coverage.unchecked
        });
    }
    Ok(report)
}

/// JSON for people: a line a field, indented.
fn print(value: &Value, depth: usize) -> Result<()> {
    let Value::Object(map) = value else { return Ok(()) };
    for (key, value) in map.iter().filter(|(_, v)| !v.is_null()) {
        let name = format!("{:1$}{key}", "", depth * 2);
        match value {
            Value::Object(_) => {
                output::line(name)?;
                print(value, depth + 1)?;
            }
            Value::String(text) => output::line(format!("{name:<18} {text}"))?,
            other => output::line(format!("{name:<18} {other}"))?,
        }
    }
    Ok(())
}
