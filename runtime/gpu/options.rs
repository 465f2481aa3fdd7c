//! How a GPU device is asked for, and the list of shaders it may build.

use super::GpuChoice;
use super::facts::FactsOptions;
use super::pipeline::Rewrite;
use crate::device::Activations;
use crate::kernels::{Caps, Family, Kernel};

/// How a GPU device computes.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Precision of the activations that meet compressed weights; also of the KV cache (float32 or half).
    pub activations: Activations,
    /// The most tokens one pass takes; fewer where a row of working memory is too wide for the GPU.
    pub max_tokens: usize,
    /// Which GPU.
    pub choice: GpuChoice,
    /// What to pretend not to have.
    pub mask: CapsMask,
    /// Whether kernels are tried before they are used, and where the results are kept.
    pub facts: FactsOptions,
    /// Breaks kernels on purpose, for tests of what happens then.
    #[doc(hidden)]
    pub rewrite: Option<Rewrite>,
}

impl Default for GpuOptions {
    /// Float32 on the best hardware GPU, passes of 256 tokens, no self-test.
    fn default() -> Self {
        Self {
            activations: Activations::F32,
            max_tokens: 256,
            choice: GpuChoice::default(),
            mask: CapsMask::default(),
            facts: FactsOptions::default(),
            rewrite: None,
        }
    }
}

/// Capabilities to leave unused, so that every fallback can be tested on one machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapsMask {
    /// This family instead of the device's own.
    pub family: Option<Family>,
    /// No subgroup operations.
    pub no_subgroups: bool,
    /// No 16-bit floats in shaders.
    pub no_f16: bool,
    /// A smaller binding limit for matrices, bytes.
    pub max_binding: Option<u64>,
}

impl CapsMask {
    pub(super) fn apply(&self, caps: Caps) -> Caps {
        Caps {
            family: self.family.unwrap_or(caps.family),
            subgroups: caps.subgroups && !self.no_subgroups,
            subgroup_size: caps.subgroup_size,
            f16: caps.f16 && !self.no_f16,
            max_binding: self.max_binding.unwrap_or(u64::MAX).min(caps.max_binding),
        }
    }
}

/// One WGSL module that some device could need.
#[derive(Clone, Debug)]
pub struct ShaderSource {
    /// Its parts in words.
    pub name: String,
    /// The joined text.
    pub wgsl: String,
}

/// Every shader that the host can build, for validation in tests.
pub fn shaders() -> Vec<ShaderSource> {
    let all = Kernel::all();
    all.iter().map(|kernel| ShaderSource { name: kernel.name(), wgsl: kernel.source() }).collect()
}
