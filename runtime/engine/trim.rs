//! Giving memory back while the engine lives: one call, two levels, a report of what came of it.

use super::Engine;
use crate::memory::{TrimLevel, TrimReport};
use crate::weights::Matrix;

impl Engine {
    /// Frees what is not in use; see [`TrimLevel`]. Answers stay what they were: what is needed again is read or computed
    /// again. Waits for the pass in progress. Where sessions of other threads go on meanwhile, bytes are estimates.
    pub fn trim(&self, level: TrimLevel) -> TrimReport {
        let before = self.memory();
        let (evicted, prefixes) = (self.evict_idle(), self.forget_prefixes());
        let (mut dropped_caches, mut mapped) = (0, 0);
        if level == TrimLevel::Critical {
            dropped_caches = self.shared.drop_idle_caches();
            self.shared.trim_device();
            mapped = self.model().weights.matrices.iter().map(Matrix::release_pages).sum();
        }
        let after = self.memory();
        // A device that was lost meanwhile holds nothing, and gave nothing back either.
        let before = if after.weights < before.weights { after } else { before };
        let report = TrimReport {
            adapters: before.tails.saturating_sub(after.tails),
            evicted,
            prefixes,
            caches: before.caches.saturating_sub(after.caches),
            dropped_caches,
            scratch: before.scratch.saturating_sub(after.scratch),
            mapped,
        };
        log::info!("trim: {} bytes freed, {} caches dropped", report.freed(), report.dropped_caches);
        report
    }
}
