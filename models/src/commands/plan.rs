//! `calora plan`: how much memory a model is going to take on this machine, before it is loaded.

use std::path::PathBuf;

use anyhow::Result;
use calora::Error;
use calora::engine::{Engine, EngineOptions};
use calora::memory::{MemoryOptions, MemoryPlan};
use serde_json::json;

use super::{LoadArgs, bytes};
use crate::output;

/// Shows what weights, caches, adapters and working memory take, and whether that fits; loads nothing.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model folder.
    model: PathBuf,
    /// Sessions that are open at once.
    #[arg(long, default_value_t = 1)]
    sessions: usize,
    /// Adapters that stay resident; 64 MiB unless told.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    adapter_budget: Option<u64>,
    /// Beginnings of conversations that are kept; 32 MiB unless told.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    prefix_budget: Option<u64>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.load.options();
    let options = EngineOptions {
        adapter_budget: args.adapter_budget,
        prefix_budget: args.prefix_budget,
        memory: MemoryOptions { sessions: Some(args.sessions), ..options.memory },
        ..options
    };
    let (plan, refused) = match Engine::check(&args.model, &options) {
        Ok(found) => (found.plan, None),
        Err(Error::DoesNotFit { plan, fits, least }) => (*plan, Some((fits, least))),
        Err(error) => return Err(error.into()),
    };
    if !args.json {
        return table(&plan, refused);
    }
    output::json(&json!({
        "kind": plan.kind, "device": plan.device, "context_size": plan.context_size, "sessions": plan.sessions,
        "weight_bytes": plan.weights, "weights_mapped": plan.mapped, "copy_bytes": plan.copies,
        "cache_bytes": plan.caches, "adapter_bytes": plan.adapters, "prefix_bytes": plan.prefixes,
        "scratch_bytes": plan.scratch, "total_bytes": plan.total(), "private_bytes": plan.private(),
        "available_bytes": plan.available, "largest_context": plan.largest_context, "fits": refused.is_none(),
        "fitting_context": refused.and_then(|(fits, _)| fits), "least_bytes": refused.map(|(_, least)| least)
    }))
}

fn table(plan: &MemoryPlan, refused: Option<(Option<usize>, u64)>) -> Result<()> {
    output::line(format!("{} {}", plan.kind, plan.device))?;
    let weights = if plan.mapped { "weights, mapped" } else { "weights" };
    let caches = format!("caches, {} x {} tokens", plan.sessions, plan.context_size);
    for (what, bytes) in [
        (weights, plan.weights),
        ("copies of their files", plan.copies),
        (&caches, plan.caches),
        ("adapters", plan.adapters),
        ("beginnings", plan.prefixes),
        ("working memory", plan.scratch),
        ("all", plan.total()),
    ] {
        if bytes > 0 {
            output::line(format!("{what:<26} {:>10}", output::bytes(bytes)))?;
        }
    }
    if let Some(available) = plan.available {
        output::line(format!("{:<26} {:>10}", "available", output::bytes(available)))?;
    }
    output::line(match refused {
        None => "it fits".to_owned(),
        Some((Some(context), _)) => format!("it does not fit; with --context {context} it does"),
        Some((None, least)) => format!("it does not fit; the least is {}", output::bytes(least)),
    })
}
