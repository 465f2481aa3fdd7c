//! What a training run can be told. Defaults come from the sweep in `models/experiments`.

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, to zero.
    #[default]
    Cosine,
    /// A straight line, to zero.
    Linear,
    /// It does not.
    Constant,
}

/// Settings of a run. Those that change the result are kept in the run's folder; a run is only resumed under the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainOptions {
    /// Optimizer steps; 0 trains nothing and writes the initial state.
    pub steps: usize,
    /// Rows in a batch.
    pub batch: usize,
    /// Batches whose gradients are summed into one step.
    pub accumulate: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate rises from zero.
    pub warmup: usize,
    /// What it does after that.
    pub schedule: Schedule,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Gradients are scaled down so that their norm over all parameters is at most this; 0 for never.
    pub clip: f64,
    /// Seed of the initial state and of the order of rows.
    pub seed: u64,
    /// Longest row in tokens: longer texts are cut into windows, longer rows of other kinds are left out.
    pub max_length: usize,
    /// Steps between two evaluations on the held-out rows; 0 for only at the end.
    pub eval_every: usize,
    /// Steps between two checkpoints; 0 for none.
    pub checkpoint_every: usize,
    /// Bytes for dequantized weights and activations; what does not fit is computed again ([`super::memory`]).
    pub memory: u64,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 300,
            batch: 16,
            accumulate: 1,
            learning_rate: 2e-3,
            warmup: 10,
            schedule: Schedule::Cosine,
            weight_decay: 0.0,
            clip: 1.0,
            seed: 0,
            max_length: 256,
            eval_every: 50,
            checkpoint_every: 100,
            memory: 4 << 30,
        }
    }
}

impl TrainOptions {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [("--batch", self.batch), ("--accumulate", self.accumulate)] {
            if value == 0 {
                bail!("{name} 0: expected at least 1");
            }
        }
        if self.max_length < 2 {
            bail!("--max-length {}: a row needs at least 2 tokens", self.max_length);
        }
        if !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            bail!("--lr {}: expected a positive number", self.learning_rate);
        }
        if !(self.clip.is_finite() && self.clip >= 0.0) {
            bail!("--clip {}: expected 0 or a positive number", self.clip);
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            bail!("--weight-decay {}: expected 0 or a positive number", self.weight_decay);
        }
        Ok(())
    }

    /// The learning rate of a step, counted from 0.
    pub fn learning_rate_at(&self, step: usize) -> f64 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f64 / (self.warmup + 1) as f64;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        self.learning_rate
            * match self.schedule {
                Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
                Schedule::Linear => 1.0 - done,
                Schedule::Constant => 1.0,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_and_falls() {
        let options = TrainOptions { steps: 110, warmup: 10, learning_rate: 1.0, ..TrainOptions::default() };
        let at = |step| options.learning_rate_at(step);
        assert!(at(0) > 0.0 && at(0) < at(5) && at(9) < 1.0);
        assert_eq!(at(10), 1.0);
        assert!((at(60) - 0.5).abs() < 1e-12);
        assert!(at(109) > 0.0 && at(109) < 0.001);
        let linear = TrainOptions { schedule: Schedule::Linear, ..options.clone() };
        assert!((linear.learning_rate_at(35) - 0.75).abs() < 1e-12);
        assert!(TrainOptions { batch: 0, ..options.clone() }.check().is_err());
        assert!(TrainOptions { learning_rate: f64::NAN, ..options }.check().is_err());
    }
}
