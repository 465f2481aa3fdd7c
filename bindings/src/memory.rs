//! What a model is going to take before it is loaded, and memory that is given back afterwards.

use calora::engine::Engine;
use calora::memory as plain;

use crate::config::EngineConfig;
use crate::error::{EngineError, Result};
use crate::info::DeviceKind;

/// What is done when a model does not fit the memory that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Enum)]
pub enum MemoryPolicy {
    /// Loading fails with the numbers.
    #[default]
    Refuse,
    /// A smaller context, then smaller budgets, down to a minimum; the engine's plan says what it became.
    Shrink,
}

/// Bytes that an engine takes at most.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct MemoryPlan {
    /// GPU or CPU.
    pub kind: DeviceKind,
    /// The device's name.
    pub device: String,
    /// Tokens that a session holds.
    pub context_size: u32,
    /// Sessions planned for.
    pub sessions: u32,
    /// Base weights on the device.
    pub weight_bytes: u64,
    /// Whether those are pages of mapped files, which the system may drop and read again.
    pub weights_mapped: bool,
    /// Files in private memory beside the device's weights.
    pub copy_bytes: u64,
    /// KV caches of all planned sessions.
    pub cache_bytes: u64,
    /// Resident adapters: their budget.
    pub adapter_bytes: u64,
    /// Beginnings of conversations: their budget.
    pub prefix_bytes: u64,
    /// Working memory.
    pub scratch_bytes: u64,
    /// All of it.
    pub total_bytes: u64,
    /// What it must fit in; absent where that is not known.
    pub available_bytes: Option<u64>,
    /// Whether it fits.
    pub fits: bool,
    /// Where it does not: the largest context with which everything else fits as asked for.
    pub fitting_context_size: Option<u32>,
    /// Where it does not: bytes of the smallest plan that `Shrink` settles for.
    pub least_bytes: Option<u64>,
}

impl MemoryPlan {
    /// A plan; `refused` says what would fit where it does not.
    pub(crate) fn new(plan: &plain::MemoryPlan, refused: Option<(Option<usize>, u64)>) -> Self {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            kind: if plan.kind == "gpu" { DeviceKind::Gpu } else { DeviceKind::Cpu },
            device: plan.device.clone(),
            context_size: count(plan.context_size),
            sessions: count(plan.sessions),
            weight_bytes: plan.weights,
            weights_mapped: plan.mapped,
            copy_bytes: plan.copies,
            cache_bytes: plan.caches,
            adapter_bytes: plan.adapters,
            prefix_bytes: plan.prefixes,
            scratch_bytes: plan.scratch,
            total_bytes: plan.total(),
            available_bytes: plan.available,
            fits: refused.is_none(),
            fitting_context_size: refused.and_then(|(fits, _)| fits).map(count),
            least_bytes: refused.map(|(_, least)| least),
        }
    }
}

/// What this configuration would take, whether or not that fits: headers are read and devices asked, nothing is placed.
#[uniffi::export]
pub fn memory_plan(config: EngineConfig) -> Result<MemoryPlan> {
    match Engine::check(&config.model, &config.options()) {
        Ok(found) => Ok(MemoryPlan::new(&found.plan, None)),
        Err(error) => match error.into() {
            EngineError::DoesNotFit { plan, .. } => Ok(*plan),
            other => Err(other),
        },
    }
}

/// How urgently memory is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum MemoryPressure {
    /// Adapters that no session uses go, and beginnings of conversations that were put aside.
    Moderate,
    /// KV caches of sessions that are not responding go too, working memory, and the pages of mapped weights; the next
    /// response computes its conversation anew.
    Critical,
}

impl From<MemoryPressure> for plain::TrimLevel {
    fn from(pressure: MemoryPressure) -> Self {
        match pressure {
            MemoryPressure::Moderate => Self::Moderate,
            MemoryPressure::Critical => Self::Critical,
        }
    }
}

/// What trimming freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Record)]
pub struct TrimReport {
    /// Bytes freed, mapped pages left out.
    pub freed_bytes: u64,
    /// Of them, of adapters.
    pub adapter_bytes: u64,
    /// Of them, of beginnings of conversations.
    pub prefix_bytes: u64,
    /// Of them, of KV caches.
    pub cache_bytes: u64,
    /// Of them, of working memory.
    pub scratch_bytes: u64,
    /// Bytes of mapped weights whose pages went back to the system, which may keep them for the next use.
    pub mapped_bytes: u64,
    /// Adapters that are no longer resident.
    pub evicted_adapters: u32,
    /// Sessions whose cache was dropped.
    pub dropped_caches: u32,
}

impl From<plain::TrimReport> for TrimReport {
    fn from(report: plain::TrimReport) -> Self {
        Self {
            freed_bytes: report.freed(),
            adapter_bytes: report.adapters,
            prefix_bytes: report.prefixes,
            cache_bytes: report.caches,
            scratch_bytes: report.scratch,
            mapped_bytes: report.mapped,
            evicted_adapters: report.evicted as u32,
            dropped_caches: report.dropped_caches as u32,
        }
    }
}
