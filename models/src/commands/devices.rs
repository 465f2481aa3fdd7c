//! `calora devices`: what this machine can compute with.

use anyhow::Result;
use calora::cpu::Simd;
use calora::gpu::GpuDevice;
use serde_json::json;

use crate::output;

/// Lists the CPU's instruction sets and every GPU with its limits and features, and why one is unusable.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let simd: Vec<String> = Simd::available().iter().map(|s| format!("{s:?}").to_lowercase()).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let gpus = GpuDevice::list();
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
        return output::json(&json!({"cpu": {"threads": threads, "simd": simd}, "gpus": gpus}));
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
    Ok(())
}
