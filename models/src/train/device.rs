//! Where training computes.

use anyhow::{Result, bail};
use burn::tensor::Device;
use calora::gpu::GpuDevice;

/// The choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU where this build can use one and there is a real one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU: CUDA where built in, else wgpu.
    Gpu,
}

/// Opens a device.
pub fn open(choice: DeviceChoice) -> Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::flex()),
        DeviceChoice::Gpu => gpu(),
        DeviceChoice::Auto => {
            let real = cfg!(any(feature = "train-gpu", feature = "train-cuda"))
                && GpuDevice::list().iter().any(|gpu| gpu.unusable.is_none() && gpu.kind != "Cpu");
            if real { gpu() } else { Ok(Device::flex()) }
        }
    }
}

fn gpu() -> Result<Device> {
    #[cfg(feature = "train-cuda")]
    return Ok(Device::cuda(0));
    #[cfg(all(feature = "train-gpu", not(feature = "train-cuda")))]
    return Ok(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice));
    #[cfg(not(any(feature = "train-gpu", feature = "train-cuda")))]
    bail!("this calora trains on the CPU only; build it with --features train-gpu (any GPU) or train-cuda")
}

/// Threads for the CPU; once a process, before anything is computed.
pub fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if threads == 0 {
        bail!("--threads 0: expected at least 1");
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    Ok(())
}
