//! Which device computes, and with which activations.

use super::DEFAULT_PREFILL_CHUNK;
use super::load::{ActivationChoice, DeviceChoice, EngineOptions};
use crate::cpu::{CpuDevice, CpuOptions};
use crate::device::{Activations, Device, Model};
use crate::error::{Error, Result};
use crate::gpu::{CapsMask, GpuChoice, GpuDevice, GpuOptions};
use crate::weights::Storage;

/// Places the model on the chosen device.
///
/// `report` is told how many bytes of weights are placed; its error ends the work.
pub(super) fn open(
    model: &Model,
    options: &EngineOptions,
    report: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Box<dyn Device>> {
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
    let mut gpu = |software: bool| -> Result<Box<dyn Device>> {
        let choice = if software { GpuChoice::Any } else { GpuChoice::Hardware };
        let options = GpuOptions { activations, max_tokens, choice, mask: CapsMask::default() };
        Ok(Box::new(GpuDevice::with_progress(model, options, report)?))
    };
    match options.device {
        DeviceChoice::Cpu => cpu(),
        DeviceChoice::Gpu => gpu(true),
        // Software Vulkan is two to four times slower than the CPU device on the same cores.
        DeviceChoice::Auto => match gpu(false) {
            Ok(device) => Ok(device),
            // The caller's own wish, not the GPU's fault.
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                log::info!("computing on the CPU: {error}");
                cpu()
            }
        },
    }
}

/// The name of the device that [`open`] would take, without opening it.
pub(super) fn choose(choice: DeviceChoice) -> Result<String> {
    let cpu = || "CPU".to_owned();
    match choice {
        DeviceChoice::Cpu => Ok(cpu()),
        DeviceChoice::Gpu => GpuDevice::probe(&GpuChoice::Any),
        DeviceChoice::Auto => Ok(GpuDevice::probe(&GpuChoice::Hardware).unwrap_or_else(|_| cpu())),
    }
}
