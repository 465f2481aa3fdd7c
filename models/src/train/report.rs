//! What a training job reports: figures for people and, with `--json`, for programs.

use serde::{Deserialize, Serialize};

use super::evaluate::Score;
use super::run::{Outcome, peak_memory};

/// What a job reports.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Steps of the run.
    pub steps: usize,
    /// Rows trained on.
    pub rows: usize,
    /// Rows left out because they are longer than `max_length`.
    pub left_out: usize,
    /// Seconds of training steps in this process.
    pub seconds: f64,
    /// Median seconds of a step.
    pub step_seconds: f64,
    /// Tokens read a second.
    pub tokens_per_second: f64,
    /// Numbers that are trained.
    pub trainable_parameters: usize,
    /// Bytes of the branches as written.
    pub bytes: u64,
    /// The most memory that this process held, bytes.
    pub peak_memory: Option<u64>,
    /// Loss of the last step.
    pub train_loss: f64,
    /// On the held-out rows.
    pub heldout: Option<HeldoutReport>,
}

/// Held-out scores of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct HeldoutReport {
    /// Before the first step: of `adapt`, the training-free state.
    pub start: Score,
    /// Of the state that is written.
    pub best: BestReport,
}

/// The state that is written.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct BestReport {
    /// After this many steps.
    pub step: usize,
    /// Its score.
    #[serde(flatten)]
    pub score: Score,
}

impl Report {
    /// Of an outcome.
    pub(super) fn new(outcome: &Outcome, steps: usize, (rows, left_out): (usize, usize), bytes: u64) -> Self {
        let heldout = outcome.start.zip(outcome.best);
        Self {
            steps,
            rows,
            left_out,
            seconds: outcome.seconds,
            step_seconds: outcome.step_seconds,
            tokens_per_second: outcome.tokens as f64 / outcome.seconds.max(1e-9),
            trainable_parameters: outcome.branches.parameters(),
            bytes,
            peak_memory: peak_memory(),
            train_loss: outcome.last.cross_entropy,
            heldout: heldout
                .map(|(start, (step, score))| HeldoutReport { start, best: BestReport { step, score } }),
        }
    }
}
