//! `calora bench --swap`: what hundreds of tasks over one model cost; `calora::bench::measure_swaps` measures.
//!
//! The task files are copies of those that are given, in a folder that goes away.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use calora::adapter::{AdapterOptions, BranchStorage, TaskAdapter, write_task_file};
use calora::bench::{SwapBench, SwapReport, measure_swaps};
use calora::engine::Engine;
use calora_models::plot::{Series, lines};

use crate::output;

/// How many tasks, and how many of them at once.
#[derive(clap::Args)]
pub(crate) struct SwapArgs {
    /// Measure many tasks instead: copies of the given adapters, mapped, some resident, swapped.
    #[arg(long)]
    swap: bool,
    /// Task files; with --swap.
    #[arg(long, default_value_t = 200, requires = "swap")]
    tasks: usize,
    /// How many of them are resident at once; with --swap.
    #[arg(long, default_value_t = 16, requires = "swap")]
    resident: usize,
}

impl SwapArgs {
    /// Whether they were asked for.
    pub(crate) fn wanted(&self) -> bool {
        self.swap
    }

    /// Measures and prints.
    pub(crate) fn run(
        &self,
        engine: &Engine,
        adapters: &[(PathBuf, f32)],
        open: &AdapterOptions,
        (prompt_tokens, runs): (usize, usize),
        (json, plot): (bool, Option<&Path>),
    ) -> Result<()> {
        if adapters.is_empty() {
            bail!("--swap copies the adapters that --adapter names; name at least one");
        }
        let folder = tempfile::tempdir()?;
        let bar = output::progress(self.tasks as u64, "task files");
        for i in 0..self.tasks {
            let adapter = TaskAdapter::open_with(&adapters[i % adapters.len()].0, open)?;
            let modules = adapter.modules().map(|(path, list)| (path.to_owned(), list.to_vec())).collect();
            let path = folder.path().join(format!("task-{i:04}.safetensors"));
            write_task_file(&path, adapter.info(), None, &modules, BranchStorage::F16)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let bench =
            SwapBench { folder: folder.path().to_owned(), resident: self.resident, prompt_tokens, runs };
        let bar = output::progress(3, "policies");
        let report = measure_swaps(engine, &bench, &mut || bar.inc(1))?;
        bar.finish_and_clear();
        if let Some(path) = plot {
            calora::weights::write_atomically(path, distribution(&report).as_bytes())?;
        }
        if json { output::json(&report) } else { table(&report) }
    }
}

fn table(r: &SwapReport) -> Result<()> {
    output::line(format!("{}, {}, {} activations, {}", r.device, r.driver, r.activations, r.scheme))?;
    output::line(format!(
        "{} tasks mapped         {:>8.1} ms, {} in their files, {} of memory",
        r.tasks,
        r.open_ms,
        output::bytes(r.mapped_bytes),
        r.open_memory_bytes.map_or("?".into(), |bytes| output::bytes(bytes.max(0) as u64)),
    ))?;
    output::line(format!(
        "{} resident             {:>8} on the device, {} planned, {} in their files, {} of memory",
        r.resident,
        output::bytes(r.resident_bytes),
        output::bytes(r.planned_resident_bytes),
        output::bytes(r.resident_file_bytes),
        r.resident_memory_bytes.map_or("?".into(), |bytes| output::bytes(bytes.max(0) as u64)),
    ))?;
    output::line(format!(
        "all of it               {:>8} held, {} planned: {:+.2} %",
        output::bytes(r.held_bytes),
        output::bytes(r.planned_bytes),
        100.0 * (r.held_bytes as f64 / r.planned_bytes as f64 - 1.0)
    ))?;
    output::line(format!("hot swap                {:>8.2} us (p99 {:.2})", r.hot_us.p50, r.hot_us.p99))?;
    let other = |case: &str, ms: Option<f64>| ms.map_or(String::new(), |ms| format!("; {case} {ms:.2}"));
    output::line(format!(
        "first use               {:>8.2} ms (p99 {:.2}), {:.2} ms for each MB{}{}",
        r.first_use_ms.p50,
        r.first_use_ms.p99,
        r.first_use_ms_per_mb,
        other("one after another, in new memory", r.in_a_row_ms_per_mb),
        other("in the place of older tasks", r.replacing_ms_per_mb)
    ))?;
    output::line("first token after a swap:")?;
    for p in &r.policies {
        output::line(format!(
            "  {:<10}            {:>8.2} ms (p99 {:.2}), {} of {} tokens not computed again{}",
            p.policy,
            p.p50,
            p.p99,
            p.cached_tokens,
            p.transcript_tokens,
            if p.exact { "" } else { "; approximate" }
        ))?;
    }
    Ok(())
}

/// Which share of the swaps had their first token after so many milliseconds.
fn distribution(r: &SwapReport) -> String {
    let series: Vec<Series> = r
        .policies
        .iter()
        .map(|p| Series {
            label: format!("{}{}", p.policy, if p.exact { "" } else { " (approximate)" }),
            points: (1..)
                .zip(&p.first_token_ms)
                .map(|(n, ms)| (*ms, n as f64 / p.first_token_ms.len() as f64))
                .collect(),
        })
        .collect();
    let title =
        format!("First token after a swap, {} tokens of conversation: share of swaps", r.prompt_tokens);
    lines(&title, &format!("milliseconds, {} on {}", r.scheme, r.device), &series)
}
