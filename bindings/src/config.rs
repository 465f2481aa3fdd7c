//! How an engine is loaded.

use std::ops::ControlFlow;

use calora::engine::{ActivationChoice, EngineOptions};
use calora::memory::MemoryOptions;

use crate::error::{EngineError, Result};
use crate::memory::MemoryPolicy;

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum DeviceChoice {
    /// The GPU where there is a real one, else the CPU.
    #[default]
    Auto,
    /// A GPU, even a software one.
    Gpu,
    /// The CPU.
    Cpu,
}

/// Precision of the activations that meet compressed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum Activations {
    /// Int8 where weights are compressed, else float32.
    #[default]
    Auto,
    /// Float32: the reference mode.
    F32,
    /// Int8: the fast mode.
    Int8,
}

/// Where base weights are read from while the engine computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum WeightAccess {
    /// From the mapped files; whoever truncates one in place meanwhile ends the process.
    #[default]
    Mapped,
    /// From a private copy, made while the engine loads: costs the file's bytes of memory.
    Copied,
}

/// How an engine is loaded; everything but the model has a default.
#[derive(Clone, Debug, Default, PartialEq, uniffi::Record)]
pub struct EngineConfig {
    /// The model's folder: `config.json`, `model.safetensors`, `tokenizer.json`.
    pub model: String,
    /// Which device.
    pub device: DeviceChoice,
    /// Which precision.
    pub activations: Activations,
    /// Tokens that a session's cache holds; by default the model's own number, at most 4,096.
    #[uniffi(default = None)]
    pub context_size: Option<u32>,
    /// Threads of the CPU device; by default one a core.
    #[uniffi(default = None)]
    pub threads: Option<u32>,
    /// Bytes of adapters that stay resident after their last use; the least recently used go first. By default 64 MiB.
    #[uniffi(default = None)]
    pub adapter_budget_bytes: Option<u64>,
    /// Bytes for beginnings of conversations that were computed before: instructions, and what `CachePolicy::Restore` puts
    /// aside. By default 32 MiB; 0 for none.
    #[uniffi(default = None)]
    pub prefix_budget_bytes: Option<u64>,
    /// A folder in which the beginnings that instructions make, and what routers measured of their examples, outlive the
    /// process, within the same budget. By default none.
    #[uniffi(default = None)]
    pub prefix_folder: Option<String>,
    /// A folder in which facts of the GPU outlive the process, such as one in the app's caches: with it, each kernel is tried
    /// before its first use, what computes wrongly on this driver is not used, and compiled pipelines are kept. By default
    /// none.
    #[uniffi(default = None)]
    pub device_folder: Option<String>,
    /// Whether the CPU computes where the GPU is refused or lost for good; by default only with `Auto`.
    #[uniffi(default = None)]
    pub fallback_to_cpu: Option<bool>,
    /// Whether base weights are computed on in their mapped files or copied first.
    pub weights: WeightAccess,
    /// Bytes for everything that the memory plan lists; by default what the system says is available, where it says so.
    #[uniffi(default = None)]
    pub memory_budget_bytes: Option<u64>,
    /// What is done when that is not enough.
    pub memory_policy: MemoryPolicy,
    /// Sessions that are going to be open at once, for the memory plan; by default 1.
    #[uniffi(default = None)]
    pub planned_sessions: Option<u32>,
}

impl EngineConfig {
    pub(crate) fn options(&self) -> EngineOptions {
        use calora::engine::DeviceChoice as Device;
        EngineOptions {
            device: match self.device {
                DeviceChoice::Auto => Device::Auto,
                DeviceChoice::Gpu => Device::Gpu,
                DeviceChoice::Cpu => Device::Cpu,
            },
            activations: match self.activations {
                Activations::Auto => ActivationChoice::Auto,
                Activations::F32 => ActivationChoice::F32,
                Activations::Int8 => ActivationChoice::Int8,
            },
            context_size: self.context_size.map(|n| n as usize),
            threads: self.threads.map(|n| n as usize),
            adapter_budget: self.adapter_budget_bytes,
            prefix_budget: self.prefix_budget_bytes,
            prefix_folder: self.prefix_folder.as_ref().map(Into::into),
            device_folder: self.device_folder.as_ref().map(Into::into),
            fallback_to_cpu: self.fallback_to_cpu,
            weights: match self.weights {
                WeightAccess::Mapped => calora::engine::WeightAccess::Mapped,
                WeightAccess::Copied => calora::engine::WeightAccess::Copied,
            },
            memory: MemoryOptions {
                budget: self.memory_budget_bytes,
                policy: match self.memory_policy {
                    MemoryPolicy::Refuse => calora::memory::MemoryPolicy::Refuse,
                    MemoryPolicy::Shrink => calora::memory::MemoryPolicy::Shrink,
                },
                sessions: self.planned_sessions.map(|n| n as usize),
            },
            ..EngineOptions::default()
        }
    }
}

/// How far loading is.
#[derive(Clone, Copy, Debug, PartialEq, uniffi::Record)]
pub struct LoadState {
    /// Bytes of weights placed.
    pub loaded_bytes: u64,
    /// Bytes of all weights.
    pub total_bytes: u64,
    /// From 0 to 1; 1 exactly once, at the end.
    pub fraction: f64,
}

/// Told of loading, on the engine's thread. Throwing stops the load with that error.
#[uniffi::export(foreign)]
pub trait LoadProgress: Send + Sync {
    /// Called a few times a second at most, and at the end.
    fn on_progress(&self, state: LoadState) -> Result<(), EngineError>;
}

impl From<calora::engine::LoadProgress> for LoadState {
    fn from(p: calora::engine::LoadProgress) -> Self {
        let fraction = p.fraction();
        Self { loaded_bytes: p.loaded_bytes, total_bytes: p.total_bytes, fraction }
    }
}

/// Passes progress on until somebody wants to stop; keeps the callback's error.
pub(crate) fn forward(
    progress: Option<&dyn LoadProgress>,
    stopped: &dyn Fn() -> bool,
    refused: &mut Option<EngineError>,
    state: LoadState,
) -> ControlFlow<()> {
    if stopped() {
        return ControlFlow::Break(());
    }
    match progress.map(|p| p.on_progress(state)) {
        Some(Err(error)) => {
            *refused = Some(error);
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    }
}
