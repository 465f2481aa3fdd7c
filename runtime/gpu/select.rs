//! Which GPU: lists what the machine has, says why one cannot be used, and opens the wanted one.

use super::context::Context;
use super::facts::{Facts, FactsOptions};
use crate::error::{Error, Result};
use crate::kernels::{Caps, Family};

/// Storage buffers that the projection kernels bind at once; WebGPU's default limit.
const STORAGE_BUFFERS: u32 = 8;

/// Which GPU to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuChoice {
    /// The best hardware GPU: discrete before integrated; never software.
    #[default]
    Hardware,
    /// Software Vulkan: for tests.
    Software,
    /// Hardware where there is some, else software.
    Any,
    /// The first whose name contains this, in any case.
    Named(String),
}

/// One GPU of the machine.
#[derive(Clone, Debug)]
pub struct GpuAdapterInfo {
    /// Marketing name.
    pub name: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `VirtualGpu`, `Cpu` (software) or `Other`.
    pub kind: String,
    /// `vulkan`, `metal`, `dx12` or `gl`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// The largest buffer, bytes.
    pub max_buffer: u64,
    /// The largest binding, bytes: matrices above it are split by rows.
    pub max_binding: u64,
    /// Smallest and largest subgroup, where the GPU has them.
    pub subgroup_sizes: Option<(u32, u32)>,
    /// 16-bit floats in shaders.
    pub f16: bool,
    /// Why calora cannot use it; `None` where it can.
    pub unusable: Option<String>,
}

/// All GPUs of the machine, best first.
pub(super) fn list() -> Vec<GpuAdapterInfo> {
    adapters().iter().map(describe).collect()
}

fn adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends =
        wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12 | wgpu::Backends::GL;
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let mut found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    found.sort_by_key(|a| rank(&a.get_info()));
    found
}

/// Hardware before software, native interfaces before GL.
fn rank(info: &wgpu::AdapterInfo) -> (u8, bool) {
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    (kind, info.backend == wgpu::Backend::Gl)
}

fn subgroups(adapter: &wgpu::Adapter) -> bool {
    adapter.features().contains(wgpu::Features::SUBGROUP)
}

fn describe(adapter: &wgpu::Adapter) -> GpuAdapterInfo {
    let (info, limits) = (adapter.get_info(), adapter.limits());
    GpuAdapterInfo {
        kind: format!("{:?}", info.device_type),
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
        max_buffer: limits.max_buffer_size,
        max_binding: limits.max_storage_buffer_binding_size,
        subgroup_sizes: subgroups(adapter).then_some((info.subgroup_min_size, info.subgroup_max_size)),
        f16: adapter.features().contains(wgpu::Features::SHADER_F16),
        unusable: unusable(adapter),
        name: info.name,
    }
}

fn unusable(adapter: &wgpu::Adapter) -> Option<String> {
    let limits = adapter.limits();
    let flags = adapter.get_downlevel_capabilities().flags;
    if !flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("it has no compute shaders".into());
    }
    let least = wgpu::Limits::default();
    let rows = [
        ("storage buffers per stage", limits.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
        ("bind groups", limits.max_bind_groups, 3),
        ("invocations per workgroup", limits.max_compute_invocations_per_workgroup, 64),
        (
            "bytes of workgroup memory",
            limits.max_compute_workgroup_storage_size,
            least.max_compute_workgroup_storage_size,
        ),
        (
            "workgroups per dimension",
            limits.max_compute_workgroups_per_dimension,
            least.max_compute_workgroups_per_dimension,
        ),
    ];
    let lacking = rows.iter().find(|(_, has, needs)| has < needs);
    lacking.map(|(what, has, needs)| format!("it has {has} {what}, {needs} are needed"))
}

/// An opened GPU.
pub(super) struct Opened {
    pub(super) context: Context,
    pub(super) caps: Caps,
    pub(super) name: String,
    pub(super) detail: String,
    pub(super) info: wgpu::AdapterInfo,
}

/// The GPU that a choice means, best first.
fn pick(choice: &GpuChoice) -> Result<wgpu::Adapter> {
    let found = adapters();
    let software = |a: &wgpu::Adapter| a.get_info().device_type == wgpu::DeviceType::Cpu;
    let wanted = |a: &&wgpu::Adapter| match choice {
        GpuChoice::Hardware => !software(a),
        GpuChoice::Software => software(a),
        GpuChoice::Any => true,
        GpuChoice::Named(part) => a.get_info().name.to_lowercase().contains(&part.to_lowercase()),
    };
    let usable = found.iter().filter(wanted).find(|a| unusable(a).is_none());
    usable.cloned().ok_or_else(|| Error::NoDevice { wanted: "gpu".into(), reason: why_none(&found, choice) })
}

/// What is known of a GPU without opening it.
pub(super) struct Known {
    pub(super) name: String,
    pub(super) caps: Caps,
    pub(super) limits: wgpu::Limits,
    /// Whether its memory is the system's.
    pub(super) in_system_memory: bool,
}

/// Those of the GPU that [`open`] would open.
pub(super) fn known(choice: &GpuChoice) -> Result<Known> {
    let adapter = pick(choice)?;
    let info = adapter.get_info();
    let limits = limits(&adapter);
    Ok(Known {
        caps: caps(&info, features(&adapter), &limits),
        limits,
        in_system_memory: info.device_type != wgpu::DeviceType::DiscreteGpu,
        name: info.name,
    })
}

/// What the device is opened with.
fn limits(adapter: &wgpu::Adapter) -> wgpu::Limits {
    let offered = adapter.limits();
    let mut limits = wgpu::Limits::default().or_worse_values_from(&offered);
    limits.max_buffer_size = offered.max_buffer_size;
    limits.max_storage_buffer_binding_size = offered.max_storage_buffer_binding_size;
    limits
}

/// Likewise.
fn features(adapter: &wgpu::Adapter) -> wgpu::Features {
    adapter.features() & (wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP)
}

fn caps(info: &wgpu::AdapterInfo, features: wgpu::Features, limits: &wgpu::Limits) -> Caps {
    let subgroups = features.contains(wgpu::Features::SUBGROUP);
    Caps {
        family: if info.device_type == wgpu::DeviceType::Cpu { Family::Lanes } else { Family::Split },
        subgroups,
        subgroup_size: if subgroups { info.subgroup_min_size } else { 0 },
        f16: features.contains(wgpu::Features::SHADER_F16),
        max_binding: limits.max_storage_buffer_binding_size,
    }
}

/// Opens the wanted GPU with the limits and features that help.
pub(super) fn open(choice: &GpuChoice, facts: &FactsOptions) -> Result<Opened> {
    let adapter = pick(choice)?;
    let info = adapter.get_info();
    let features = features(&adapter) | (adapter.features() & Facts::features(facts));
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("calora"),
        required_features: features,
        required_limits: limits(&adapter),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| {
        Error::NoDevice { wanted: "gpu".into(), reason: format!("{} refused to open: {e}", info.name) }
    })?;
    let context = Context::new(device, queue);
    let caps = caps(&info, features, &context.limits);
    let detail = format!("{} {:?}, {} {}", info.backend, info.device_type, info.driver, info.driver_info);
    Ok(Opened { context, caps, name: info.name.clone(), detail, info })
}

fn why_none(found: &[wgpu::Adapter], choice: &GpuChoice) -> String {
    const INSTALL: &str = "on Debian and Ubuntu, `apt-get install mesa-vulkan-drivers libvulkan1` installs the \
        drivers of Intel and AMD GPUs and software Vulkan";
    if found.is_empty() {
        return format!("no Vulkan, Metal, DirectX 12 or OpenGL driver was found; {INSTALL}");
    }
    let names: Vec<String> = found
        .iter()
        .map(|a| {
            let info = a.get_info();
            let note = unusable(a).map_or(String::new(), |why| format!(": {why}"));
            format!("{} ({:?}, {}){note}", info.name, info.device_type, info.backend)
        })
        .collect();
    format!("none of {} is what {choice:?} asks for; {INSTALL}", names.join(", "))
}
