//! AdamW over the branches, with gradients clipped by their norm over all of them.

use anyhow::{Result, bail};
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer as _};
use burn::tensor::{DType, Device, Tensor};

use super::branches::{Branches, Values};
use super::options::TrainOptions;

/// The optimizer and its state.
pub struct Optimizer {
    adam: AdamW,
    clip: f64,
    states: Vec<Option<AdamWState<2>>>,
}

/// First and second moments of one tensor.
pub type Moments = (Values, Values);

impl Optimizer {
    /// With no state yet. β are 0.9 and 0.999, ε 1e-8 as in PyTorch (burn's own default is 1e-5).
    pub fn new(options: &TrainOptions, tensors: usize) -> Self {
        let config = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(options.weight_decay);
        Self { adam: config.build(), clip: options.clip, states: (0..tensors).map(|_| None).collect() }
    }

    /// One step; returns the new branches and the norm of the gradients before clipping.
    pub fn step(
        &mut self,
        branches: &Branches,
        gradients: Vec<Tensor<2>>,
        learning_rate: f64,
    ) -> Result<(Branches, f64)> {
        let squares = gradients.iter().map(|g| g.clone().square().sum()).collect();
        let norm = Tensor::<1>::cat(squares, 0).sum().try_into_scalar::<f64>()?.sqrt();
        if !norm.is_finite() {
            bail!("the gradients are not finite; lower the learning rate, or check the rows and the LoRA");
        }
        let scale = if self.clip > 0.0 && norm > self.clip { self.clip / norm } else { 1.0 };
        let mut tensors = Vec::with_capacity(gradients.len());
        for ((tensor, gradient), state) in branches.tensors().zip(gradients).zip(&mut self.states) {
            let gradient = if scale == 1.0 { gradient } else { gradient.mul_scalar(scale) };
            let (tensor, next) = self.adam.step(learning_rate, tensor.clone(), gradient, state.take());
            *state = next;
            tensors.push(tensor);
        }
        Ok((branches.with(tensors), norm))
    }

    /// The moments, none before the first step.
    pub fn moments(&self) -> Result<Option<Vec<Moments>>> {
        let read = |state: &Option<AdamWState<2>>| -> Result<Option<Moments>> {
            let Some(state) = state else { return Ok(None) };
            Ok(Some((Values::read(&state.momentum.moment_1)?, Values::read(&state.momentum.moment_2)?)))
        };
        self.states.iter().map(read).collect()
    }

    /// Goes on from saved moments after `steps` steps.
    pub fn restore(&mut self, moments: Vec<Moments>, steps: usize, device: &Device, dtype: DType) {
        self.states = moments
            .into_iter()
            .map(|(first, second)| {
                let momentum = AdaptiveMomentumState::new(
                    steps,
                    first.tensor(device, dtype),
                    second.tensor(device, dtype),
                );
                Some(AdamWState::new(momentum))
            })
            .collect();
    }
}
