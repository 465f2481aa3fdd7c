//! `calora eval`: how good a model with an adapter is on a file of rows.

use std::path::PathBuf;

use anyhow::Result;
use calora_models::{eval::evaluate, rows};

use super::{AdapterArgs, LoadArgs};
use crate::output;

/// Accuracy for choices, loss and perplexity for text, exact match and word F1 for completions.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model folder.
    model: PathBuf,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Rows: {prompt, completion}, {prompt, choices, label} or {text}, one JSON object a line.
    #[arg(long)]
    data: PathBuf,
    /// Only the first N rows.
    #[arg(long)]
    limit: Option<usize>,
    /// The most tokens of a text that are seen at once.
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Write how each row went: one JSON object a line.
    #[arg(long, value_name = "FILE")]
    rows_out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let rows = rows::read(&args.data, args.limit)?;
    let engine = args.load.load(&args.model)?;
    let adapters = args.adapters.open(&engine)?;
    let bar = output::progress(rows.len() as u64, "rows");
    let mut lines = String::new();
    let result = evaluate(&engine, &adapters, &rows, args.window, |row| {
        bar.inc(1);
        lines += &serde_json::to_string(&row)?;
        lines.push('\n');
        Ok(())
    })?;
    bar.finish_and_clear();
    if let Some(path) = &args.rows_out {
        calora::weights::write_atomically(path, lines.as_bytes())?;
    }
    // Int8 activations cost a little quality: every result says under which it was measured.
    let device = engine.device_info();
    let activations = format!("{:?}", device.activations).to_lowercase();
    if args.json {
        let mut value = serde_json::to_value(&result)?;
        value["device"] = device.kind.into();
        value["activations"] = activations.into();
        return output::json(&value);
    }
    output::line(format!("{} rows, {} device, {activations} activations", result.rows, device.kind))?;
    for (name, value) in [
        ("accuracy", result.accuracy),
        ("exact match", result.exact_match),
        ("word F1", result.token_f1),
        ("loss (nats per token)", result.loss),
        ("perplexity", result.perplexity),
    ] {
        if let Some(value) = value {
            output::line(format!("{name:<22} {value:.4}"))?;
        }
    }
    Ok(())
}
