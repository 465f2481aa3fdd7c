//! Which device computes, with which activations, and which takes over when it is lost.

use super::DEFAULT_PREFILL_CHUNK;
use super::load::{ActivationChoice, DeviceChoice, EngineOptions};
use crate::cpu::{self, CpuDevice, CpuOptions};
use crate::device::{Activations, Device, Footprint, Model};
use crate::error::{Error, Result};
use crate::gpu::{self, FactsOptions, GpuChoice, GpuDevice, GpuOptions};
use crate::session::Recovery;
use crate::weights::Storage;

/// Told how many bytes of weights are placed; its error ends the work.
type Report<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// Places the model on the chosen device.
pub(super) fn open(
    model: &Model,
    options: &EngineOptions,
    report: Report<'_>,
) -> Result<(Box<dyn Device>, Recovery)> {
    if let Some(threads @ 0) = options.threads {
        return Err(Error::option("threads", threads, "must be at least 1"));
    }
    let of = || (model.clone(), options.clone());
    let on_cpu = || -> Result<(Box<dyn Device>, Recovery)> {
        let (model, options) = of();
        let device = cpu(&model, &options)?;
        Ok((device, Recovery { again: Box::new(move || cpu(&model, &options)), cpu: None }))
    };
    if options.device == DeviceChoice::Cpu {
        return on_cpu();
    }
    match gpu(model, options, report) {
        Ok(device) => {
            let spare = of();
            let cpu = options.falls_back().then(|| Box::new(move || cpu(&spare.0, &spare.1)) as _);
            let (model, options) = of();
            Ok((device, Recovery { again: Box::new(move || gpu(&model, &options, &mut |_| Ok(()))), cpu }))
        }
        // The caller's own wish, not the GPU's fault.
        Err(error @ Error::Cancelled) => Err(error),
        Err(error) if options.falls_back() => {
            log::info!("computing on the CPU: {error}");
            on_cpu()
        }
        Err(error) => Err(error),
    }
}

/// Told how much each device that may be taken would hold, first the one that is tried first.
pub(super) fn footprints(model: &Model, options: &EngineOptions) -> Result<Vec<Footprint>> {
    let mut found = Vec::new();
    if options.device != DeviceChoice::Cpu {
        match gpu::plan::footprint(model, &gpu_options(model, options)) {
            Ok(footprint) => found.push(footprint),
            Err(error) if !options.falls_back() => return Err(error),
            Err(error) => log::info!("planning for the CPU: {error}"),
        }
    }
    if options.device == DeviceChoice::Cpu || options.falls_back() {
        found.push(cpu::plan::footprint(model, &cpu_options(model, options)));
    }
    Ok(found)
}

fn cpu_options(model: &Model, options: &EngineOptions) -> CpuOptions {
    let (activations, max_tokens) = (activations(model, options), max_tokens(options));
    CpuOptions { threads: options.threads, activations, max_tokens, simd: None }
}

fn gpu_options(model: &Model, options: &EngineOptions) -> GpuOptions {
    let (activations, max_tokens) = (activations(model, options), max_tokens(options));
    // Software Vulkan is two to four times slower than the CPU device on the same cores.
    let choice = if options.device == DeviceChoice::Auto { GpuChoice::Hardware } else { GpuChoice::Any };
    let folder = options.device_folder.clone();
    let facts = FactsOptions { self_test: folder.is_some(), folder, ..FactsOptions::default() };
    GpuOptions { activations, max_tokens, choice, facts, ..GpuOptions::default() }
}

fn cpu(model: &Model, options: &EngineOptions) -> Result<Box<dyn Device>> {
    Ok(Box::new(CpuDevice::new(model, cpu_options(model, options))?))
}

fn gpu(model: &Model, options: &EngineOptions, report: Report<'_>) -> Result<Box<dyn Device>> {
    Ok(Box::new(GpuDevice::with_progress(model, gpu_options(model, options), report)?))
}

fn activations(model: &Model, options: &EngineOptions) -> Activations {
    let compressed = model.weights.matrices.iter().any(|m| matches!(m.storage, Storage::Packed { .. }));
    match options.activations {
        ActivationChoice::F32 => Activations::F32,
        ActivationChoice::Int8 => Activations::Int8,
        ActivationChoice::Auto if compressed => Activations::Int8,
        ActivationChoice::Auto => Activations::F32,
    }
}

fn max_tokens(options: &EngineOptions) -> usize {
    options.prefill_chunk.unwrap_or(DEFAULT_PREFILL_CHUNK)
}
