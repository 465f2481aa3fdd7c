//! Which device computes, and with which activations.

use super::DEFAULT_PREFILL_CHUNK;
use super::load::{ActivationChoice, DeviceChoice, EngineOptions};
use crate::cpu::{CpuDevice, CpuOptions};
use crate::device::{Activations, Device, Model};
use crate::error::{Error, Result};
use crate::gpu::{CapsMask, GpuChoice, GpuDevice, GpuOptions};
use crate::weights::Storage;

/// Places the model on the chosen device.
pub(super) fn open(model: &Model, options: &EngineOptions) -> Result<Box<dyn Device>> {
    let compressed = model.weights.matrices.iter().any(|m| matches!(m.storage, Storage::Packed { .. }));
    let activations = match options.activations {
        ActivationChoice::F32 => Activations::F32,
        ActivationChoice::Int8 => Activations::Int8,
        ActivationChoice::Auto if compressed => Activations::Int8,
        ActivationChoice::Auto => Activations::F32,
    };
    let max_tokens = options.prefill_chunk.unwrap_or(DEFAULT_PREFILL_CHUNK);
    if let Some(threads @ 0) = options.threads {
        return Err(Error::option("threads", threads, "must be at least 1"));
    }
    let cpu = || -> Result<Box<dyn Device>> {
        let options = CpuOptions { threads: options.threads, activations, max_tokens, simd: None };
        Ok(Box::new(CpuDevice::new(model, options)?))
    };
    let gpu = |software: bool| -> Result<Box<dyn Device>> {
        let choice = if software { GpuChoice::Any } else { GpuChoice::Hardware };
        let options = GpuOptions { activations, max_tokens, choice, mask: CapsMask::default() };
        Ok(Box::new(GpuDevice::new(model, options)?))
    };
    match options.device {
        DeviceChoice::Cpu => cpu(),
        DeviceChoice::Gpu => gpu(true),
        // Software Vulkan is two to four times slower than the CPU device on the same cores.
        DeviceChoice::Auto => match gpu(false) {
            Ok(device) => Ok(device),
            Err(error) => {
                log::info!("computing on the CPU: {error}");
                cpu()
            }
        },
    }
}
