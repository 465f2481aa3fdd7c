//! `calora inspect`: what a model, adapter or task file holds.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calora::adapter::{BranchKind, TaskAdapter};
use calora::weights::{BaseIds, ModelFolder, Storage};
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
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let is_model = args.path.join("config.json").exists();
    let report = if is_model { model(&args.path)? } else { adapter(&args.path, args.base.as_deref())? };
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

fn adapter(path: &Path, base: Option<&Path>) -> Result<Value> {
    let adapter = TaskAdapter::open(path)?;
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
        "sampling": info.sampling, "max_tokens": info.max_tokens, "modules": modules
    });
    if let Some(base) = base {
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
