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
