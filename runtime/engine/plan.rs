//! The memory plan: what a model folder is going to take on which device, whether that fits, and what would.
//!
//! Invariant: reads headers and asks devices; places nothing. What fits a budget of so many bytes takes no more of them, as
//! far as [`MemoryPlan`] says.

use std::path::Path;

use super::load::{self, Opened};
use super::{DEFAULT_CONTEXT, Engine, EngineOptions, device};
use crate::arch::ModelShape;
use crate::device::Footprint;
use crate::error::{Error, Result};
use crate::memory::{LEAST_ADAPTERS, LEAST_CONTEXT, MemoryPlan, MemoryPolicy, available};
use crate::session::prefixes;
use crate::session::residency;
use crate::weights::WeightAccess;

impl Engine {
    /// What a folder would take with these options on the device that is tried first, whether or not it fits
    /// ([`MemoryPlan::fits`]); with [`MemoryPolicy::Shrink`], after shrinking. Headers are read and devices asked; nothing
    /// is placed.
    pub fn plan(folder: impl AsRef<Path>, options: &EngineOptions) -> Result<MemoryPlan> {
        match settle(&load::open(folder.as_ref(), WeightAccess::Mapped)?, options) {
            Err(Error::DoesNotFit { plan, .. }) => Ok(*plan),
            settled => settled,
        }
    }
}

/// Positions of a session's cache.
pub(super) fn context_size(shape: &ModelShape, wanted: Option<usize>) -> Result<usize> {
    let size = wanted.unwrap_or(shape.context.min(DEFAULT_CONTEXT));
    if size == 0 || size > shape.context {
        let reason = format!("must be between 1 and {}, which the model was made for", shape.context);
        return Err(Error::option("context_size", size, reason));
    }
    Ok(size)
}

/// The plan on the first device that it fits on, shrunk where that was asked for; else the first device's error.
pub(super) fn settle(opened: &Opened, options: &EngineOptions) -> Result<MemoryPlan> {
    if options.prefill_chunk == Some(0) {
        return Err(Error::option("prefill_chunk", 0, "must be at least 1"));
    }
    if options.memory.sessions == Some(0) {
        return Err(Error::option("sessions", 0, "must be at least 1"));
    }
    let context = context_size(&opened.model.recipe.shape, options.context_size)?;
    let system = available();
    let mut refused = None;
    for footprint in device::footprints(&opened.model, options)? {
        let draft = Draft::new(&footprint, opened, options, context, system);
        match draft.settle(options.memory.policy) {
            Ok(plan) => return Ok(plan),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let none = || Error::NoDevice { wanted: "any".into(), reason: "there is none to plan for".into() };
    Err(refused.unwrap_or_else(none))
}

/// Working memory for sessions that decode together.
fn together(footprint: &Footprint, sessions: usize) -> u64 {
    match sessions {
        ..2 => 0,
        _ => footprint.batch_row.saturating_mul(sessions as u64),
    }
}

/// The options that load what was planned.
pub(super) fn options(plan: &MemoryPlan, wanted: EngineOptions) -> EngineOptions {
    // A GPU that was planned for and refuses still leaves the CPU; one that has no room is not asked.
    let device = if plan.kind == "cpu" { super::DeviceChoice::Cpu } else { wanted.device };
    EngineOptions {
        device,
        context_size: Some(plan.context_size),
        adapter_budget: Some(plan.adapters),
        prefix_budget: Some(plan.prefixes),
        ..wanted
    }
}

/// A plan whose context and budgets may still change.
struct Draft<'a> {
    footprint: &'a Footprint,
    plan: MemoryPlan,
}

impl<'a> Draft<'a> {
    fn new(
        footprint: &'a Footprint,
        opened: &Opened,
        options: &EngineOptions,
        context: usize,
        system: Option<u64>,
    ) -> Self {
        let copied = options.weights == WeightAccess::Copied;
        let files = || opened.files.tensors().files().iter().map(|file| file.bytes().len() as u64).sum();
        let is_cpu = footprint.kind == "cpu";
        let sessions = options.memory.sessions.unwrap_or(1);
        let plan = MemoryPlan {
            kind: footprint.kind,
            device: footprint.device.clone(),
            sessions,
            weights: footprint.weights,
            copies: if copied && !is_cpu { files() } else { 0 },
            adapters: options.adapter_budget.unwrap_or(residency::DEFAULT_BUDGET),
            prefixes: options.prefix_budget.unwrap_or(prefixes::DEFAULT_BUDGET),
            scratch: footprint.scratch.saturating_add(together(footprint, sessions)),
            mapped: is_cpu && !copied,
            available: options.memory.budget.or(if footprint.in_system_memory { system } else { None }),
            largest_context: footprint.largest_buffer.map(|most| (most / footprint.position.max(1)) as usize),
            ..MemoryPlan::default()
        };
        let mut draft = Self { footprint, plan };
        draft.set_context(context);
        draft
    }

    fn set_context(&mut self, positions: usize) {
        self.plan.context_size = positions;
        self.plan.caches = self.footprint.cache(positions).saturating_mul(self.plan.sessions as u64);
    }

    /// Bytes that are left for what `without` takes out of a plan.
    fn room(&self, without: fn(&mut MemoryPlan)) -> u64 {
        let mut rest = self.plan.clone();
        without(&mut rest);
        self.plan.available.unwrap_or(u64::MAX).saturating_sub(rest.total())
    }

    /// The largest context at most as long as planned with which the plan fits; 0 where there is none.
    fn largest_context(&self) -> usize {
        let room = self.room(|plan| plan.caches = 0) / self.plan.sessions.max(1) as u64;
        let per_position = self.footprint.position.saturating_mul(self.footprint.cache_buffers).max(1);
        let most = self.plan.context_size.min(self.plan.largest_context.unwrap_or(usize::MAX));
        let mut context = most.min(usize::try_from(room / per_position).unwrap_or(usize::MAX));
        // Buffers are rounded up.
        while context > 0 && self.footprint.cache(context) > room {
            context -= 1;
        }
        context
    }

    /// The plan as it is, or made smaller, or why neither fits.
    fn settle(mut self, policy: MemoryPolicy) -> Result<MemoryPlan> {
        if self.plan.fits() {
            return Ok(self.plan);
        }
        let wanted = self.plan.clone();
        let fits = self.largest_context();
        self.shrink(fits);
        if policy == MemoryPolicy::Shrink && self.plan.fits() {
            return Ok(self.plan);
        }
        self.set_context(LEAST_CONTEXT.min(wanted.context_size));
        self.plan.prefixes = 0;
        self.plan.adapters = LEAST_ADAPTERS.min(wanted.adapters);
        let least = self.plan.total();
        Err(Error::DoesNotFit { plan: Box::new(wanted), fits: (fits > 0).then_some(fits), least })
    }

    /// Context first, then beginnings, then adapters.
    fn shrink(&mut self, largest: usize) {
        let least = LEAST_CONTEXT.min(self.plan.context_size);
        self.set_context(largest.max(least));
        self.plan.prefixes = self.plan.prefixes.min(self.room(|plan| plan.prefixes = 0));
        let adapters = self.plan.adapters.min(self.room(|plan| plan.adapters = 0));
        self.plan.adapters = adapters.max(LEAST_ADAPTERS.min(self.plan.adapters));
    }
}
