//! `calora devices`: what this machine can compute with, and whether its GPUs compute rightly.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use calora::cpu::Simd;
use calora::device::DeviceFacts;
use calora::gpu::{FactsOptions, GpuAdapterInfo, GpuChoice, GpuDevice, GpuOptions, Timing};
use serde_json::{Value, json};

use crate::output;

/// Lists the CPU's instruction sets and every GPU with its limits and features, and why one is unusable. With --self-test
/// every kernel runs on the GPU's driver and is compared with what it should compute.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Try the kernels of the best GPU (or of --gpu) and take their times.
    #[arg(long)]
    self_test: bool,
    /// Only GPUs whose name contains this; also software ones.
    #[arg(long, requires = "self_test")]
    gpu: Option<String>,
    /// Also kernels for forms of weights that are rare.
    #[arg(long, requires = "self_test")]
    every: bool,
    /// Seconds after which the rest is left untested.
    #[arg(long, requires = "self_test", default_value_t = 20.0)]
    seconds: f64,
    /// Keep the results and the compiled pipelines here, and begin with what is kept.
    #[arg(long, requires = "self_test")]
    folder: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let simd: Vec<String> = Simd::available().iter().map(|s| format!("{s:?}").to_lowercase()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let gpus = GpuDevice::list();
    let tests = if args.self_test { self_tests(args, &gpus) } else { Vec::new() };
    if args.json {
        let gpus: Vec<_> = gpus
            .iter()
            .map(|g| {
                json!({
                    "name": g.name, "kind": g.kind, "backend": g.backend, "driver": g.driver,
                    "max_buffer": g.max_buffer, "max_binding": g.max_binding,
                    "subgroup_sizes": g.subgroup_sizes, "f16": g.f16, "unusable": g.unusable
                })
            })
            .collect();
        let mut all = json!({"cpu": {"threads": threads, "simd": simd}, "gpus": gpus});
        if args.self_test {
            all["self_tests"] = tests.iter().map(test_json).collect();
        }
        return output::json(&all);
    }
    output::line(format!("cpu   {threads} threads, {}", simd.join(", ")))?;
    if gpus.is_empty() {
        output::line("gpu   none found; on Debian and Ubuntu software Vulkan is in mesa-vulkan-drivers")?;
    }
    for g in &gpus {
        output::line(format!("gpu   {} ({}, {}, {})", g.name, g.kind, g.backend, g.driver))?;
        let subgroups = g.subgroup_sizes.map_or("none".into(), |(a, b)| format!("{a} to {b}"));
        output::line(format!(
            "      binding {}, buffer {}, subgroups {subgroups}, f16 {}",
            output::bytes(g.max_binding),
            output::bytes(g.max_buffer),
            if g.f16 { "yes" } else { "no" }
        ))?;
        if let Some(reason) = &g.unusable {
            output::line(format!("      unusable: {reason}"))?;
        }
    }
    tests.iter().try_for_each(test_lines)
}

/// A GPU's name, and what its test gave.
type Tested = (String, calora::Result<DeviceFacts>);

/// Tests the GPUs that are asked for, one after the other; what goes wrong with one is its result.
fn self_tests(args: &Args, gpus: &[GpuAdapterInfo]) -> Vec<Tested> {
    let start = Instant::now();
    let mut tested: Vec<Tested> = Vec::new();
    for gpu in gpus.iter().filter(|gpu| gpu.unusable.is_none()) {
        // One GPU may be there behind several interfaces, the best first.
        let again = tested.iter().any(|(name, _)| *name == gpu.name);
        let wanted = match &args.gpu {
            Some(part) => gpu.name.to_lowercase().contains(&part.to_lowercase()),
            None => gpu.kind != "Cpu" || tested.is_empty(),
        };
        if again || !wanted {
            continue;
        }
        let facts = FactsOptions { self_test: true, folder: args.folder.clone(), timing: Timing::Auto };
        let choice = GpuChoice::Named(gpu.name.clone());
        let options = GpuOptions { choice, facts, ..GpuOptions::default() };
        let limit =
            Duration::from_secs_f64(args.seconds.clamp(0.0, 86_400.0)).saturating_sub(start.elapsed());
        tested.push((gpu.name.clone(), GpuDevice::self_test(&options, args.every, limit)));
    }
    tested
}

fn test_json((gpu, result): &Tested) -> Value {
    match result {
        Ok(facts) => facts.to_json(),
        Err(error) => json!({"gpu": gpu, "error": error.to_string()}),
    }
}

fn test_lines((gpu, result): &Tested) -> Result<()> {
    let facts = match result {
        Ok(facts) => facts,
        Err(error) => return output::line(format!("test  {gpu}: {error}")),
    };
    let failed = facts.failures().count();
    output::line(format!(
        "test  {gpu}: {} kernels pass, {failed} fail, {} untested, in {:.1} s ({})",
        facts.kernels.len() - failed,
        facts.untested,
        facts.seconds,
        facts.detail
    ))?;
    for k in &facts.kernels {
        let mark = if k.chosen { "*" } else { " " };
        let micros = k.micros.map_or(String::new(), |m| format!("{m:.1} us"));
        let state = match &k.failure {
            None => format!("ok {:8.1e}", k.error),
            Some(_) => "FAIL       ".into(),
        };
        let reason = k.failure.as_ref().map_or(String::new(), |reason| format!(": {reason}"));
        output::line(format!("    {mark} {state} {micros:>12}  {}{reason}", k.kernel))?;
    }
    output::line("      * runs on this GPU; the error is a fraction of the largest value")
}
