//! Kernels become pipelines: bind group layouts once each, pipelines on first use, both kept.

use std::collections::HashMap;

use super::context::Context;
use crate::error::Result;
use crate::kernels::{Binding, Kernel};

/// Bytes between two dispatches' parameters: WebGPU's default offset alignment.
pub(super) const PARAMS_STRIDE: u64 = 256;
/// Bytes of one dispatch's parameters at most.
const PARAMS_SIZE: u64 = 80;

/// Layouts and pipelines of one device.
#[derive(Default)]
pub(super) struct Pipelines {
    layouts: HashMap<&'static [Binding], wgpu::BindGroupLayout>,
    pipelines: HashMap<Kernel, wgpu::ComputePipeline>,
    rewrite: Option<Rewrite>,
    /// The driver's compiled code, where it hands that out.
    cache: Option<wgpu::PipelineCache>,
    /// Compiled since the cache was last handed out.
    fresh: bool,
}

/// Another text for the kernel of this name; for tests, which break kernels on purpose.
#[allow(unreachable_pub)] // it is a field of the options
pub type Rewrite = fn(name: &str, wgsl: String) -> String;

impl Pipelines {
    pub(super) fn new(rewrite: Option<Rewrite>) -> Self {
        Self { rewrite, ..Self::default() }
    }

    /// Begins a cache of the driver's compiled code with what [`Pipelines::fresh_cache`] gave another time.
    pub(super) fn open_cache(&mut self, context: &Context, kept: Option<Vec<u8>>) {
        if !context.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return;
        }
        let made = context.guard("a pipeline cache", 0, || {
            let descriptor =
                wgpu::PipelineCacheDescriptor { label: None, data: kept.as_deref(), fallback: true };
            // SAFETY: the data is what wgpu gave for this adapter, driver and version, which name its file and stand in
            // it; its checksum holds. wgpu and the driver check their own headers.
            unsafe { context.device.create_pipeline_cache(&descriptor) }
        });
        match made {
            Ok(cache) => self.cache = Some(cache),
            Err(e) => log::warn!("pipelines are compiled without a cache: {e}"),
        }
    }

    /// The driver's compiled code, where there is new one since the last time.
    pub(super) fn fresh_cache(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.fresh) {
            return None;
        }
        self.cache.as_ref()?.get_data()
    }

    /// Frees a pipeline.
    pub(super) fn forget(&mut self, kernel: Kernel) {
        self.pipelines.remove(&kernel);
    }

    /// The layout of a group.
    pub(super) fn layout(
        &mut self,
        context: &Context,
        bindings: &'static [Binding],
    ) -> Result<wgpu::BindGroupLayout> {
        if let Some(layout) = self.layouts.get(bindings) {
            return Ok(layout.clone());
        }
        let entries: Vec<wgpu::BindGroupLayoutEntry> = bindings
            .iter()
            .enumerate()
            .map(|(i, binding)| wgpu::BindGroupLayoutEntry {
                binding: i as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        Binding::Params => wgpu::BufferBindingType::Uniform,
                        Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
                        Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
                    },
                    has_dynamic_offset: *binding == Binding::Params,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = context.guard("a bind group layout", 0, || {
            let descriptor = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            context.device.create_bind_group_layout(&descriptor)
        })?;
        self.layouts.insert(bindings, layout.clone());
        Ok(layout)
    }

    /// A group of whole buffers; at [`Binding::Params`] one slice of the parameter buffer, moved by a dynamic offset.
    pub(super) fn bind(
        &mut self,
        context: &Context,
        bindings: &'static [Binding],
        buffers: &[&wgpu::Buffer],
    ) -> Result<wgpu::BindGroup> {
        let layout = self.layout(context, bindings)?;
        let entries: Vec<wgpu::BindGroupEntry<'_>> = bindings
            .iter()
            .zip(buffers)
            .enumerate()
            .map(|(i, (binding, buffer))| wgpu::BindGroupEntry {
                binding: i as u32,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer,
                    offset: 0,
                    size: match binding {
                        Binding::Params => wgpu::BufferSize::new(PARAMS_SIZE),
                        _ => None,
                    },
                }),
            })
            .collect();
        context.guard("a bind group", 0, || {
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries };
            context.device.create_bind_group(&descriptor)
        })
    }

    /// The kernel's pipeline, compiled on first use.
    pub(super) fn get(&mut self, context: &Context, kernel: Kernel) -> Result<wgpu::ComputePipeline> {
        if let Some(pipeline) = self.pipelines.get(&kernel) {
            return Ok(pipeline.clone());
        }
        let mut layouts = Vec::new();
        for bindings in kernel.groups() {
            layouts.push(bindings.map(|b| self.layout(context, b)).transpose()?);
        }
        let layouts: Vec<Option<&wgpu::BindGroupLayout>> = layouts.iter().map(Option::as_ref).collect();
        let name = kernel.name();
        let mut source = kernel.source();
        if let Some(rewrite) = self.rewrite {
            source = rewrite(&name, source);
        }
        let pipeline = context.guard(&format!("the kernel {name}"), 0, || {
            let module = context.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&name),
                source: wgpu::ShaderSource::Wgsl(source.into()),
            });
            let layout = context.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: None,
                bind_group_layouts: &layouts,
                immediate_size: 0,
            });
            context.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some("main"),
                // Every kernel writes shared memory before it reads it.
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: self.cache.as_ref(),
            })
        })?;
        self.fresh = true;
        self.pipelines.insert(kernel, pipeline.clone());
        Ok(pipeline)
    }
}
