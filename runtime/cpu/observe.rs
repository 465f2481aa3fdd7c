//! A pass in stages, its projections' inputs seen: what calibration needs of a device.

use std::ops::Range;

use super::CpuDevice;
use crate::arch::LinearId;
use crate::device::{CacheId, Forward, TailId, Want};
use crate::error::{Error, Result};

/// The input of one projection, after its norm.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The linears that share it.
    pub linears: &'a [LinearId],
    /// (T, stride) values, of which each row's first `cols` count and the others are zero.
    pub values: &'a [f32],
    /// K.
    pub cols: usize,
    /// Values from one row to the next.
    pub stride: usize,
}

/// Sees the input of each projection as it is computed, on one of the device's threads.
pub type Observer<'a> = &'a (dyn Fn(&Inputs<'_>) + Sync);

/// Some steps of a pass over a whole sequence, from position 0.
#[derive(Clone)]
pub struct Stage<'a> {
    /// One of [`crate::arch::Recipe::stages`].
    pub steps: Range<usize>,
    /// 1..=[`crate::device::DeviceInfo::max_tokens`] ids.
    pub tokens: &'a [u32],
    /// A cache for as many positions; what it held is lost.
    pub cache: CacheId,
    /// The attached adapter.
    pub tail: Option<TailId>,
    /// What looks on.
    pub observer: Option<Observer<'a>>,
}

impl CpuDevice {
    /// Runs one stage: `residual` (T, C) is what the stage before left and becomes what this one leaves; the first
    /// stage makes it from the tokens. No logits are computed, so the head is not seen.
    pub fn run_stage(&mut self, stage: &Stage<'_>, residual: &mut Vec<f32>) -> Result<()> {
        let recipe = &self.model.recipe;
        if !recipe.stages().contains(&stage.steps) {
            let reason = "is no stage of this recipe";
            return Err(Error::option("steps", format!("{:?}", stage.steps), reason));
        }
        let expected = stage.tokens.len() * recipe.shape.hidden;
        if stage.steps.start > 0 && residual.len() != expected {
            let reason = format!("{expected} values are what the stage before leaves");
            return Err(Error::option("residual", residual.len(), reason));
        }
        let pass = Forward {
            tokens: stage.tokens,
            position: 0,
            cache: stage.cache,
            tail: stage.tail,
            scales: &[],
            want: Want::Nothing,
        };
        std::mem::swap(&mut self.scratch.residual, residual);
        let answer = self.run(&[pass], stage.steps.clone(), stage.observer);
        std::mem::swap(&mut self.scratch.residual, residual);
        answer.map(|_| ())
    }
}
