//! Kernels become pipelines: bind group layouts once each, pipelines on first use, both kept.

use std::collections::HashMap;

use super::context::Context;
use crate::error::Result;
use crate::kernels::{Binding, Kernel};

/// Bytes between two dispatches' parameters: WebGPU's default offset alignment.
pub(super) const PARAMS_STRIDE: u64 = 256;
/// Bytes of one dispatch's parameters at most.
const PARAMS_SIZE: u64 = 64;

/// Layouts and pipelines of one device.
#[derive(Default)]
pub(super) struct Pipelines {
    layouts: HashMap<&'static [Binding], wgpu::BindGroupLayout>,
    pipelines: HashMap<Kernel, wgpu::ComputePipeline>,
}

impl Pipelines {
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
        let pipeline = context.guard(&format!("the kernel {name}"), 0, || {
            let module = context.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(&name),
                source: wgpu::ShaderSource::Wgsl(kernel.source().into()),
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
                cache: None,
            })
        })?;
        self.pipelines.insert(kernel, pipeline.clone());
        Ok(pipeline)
    }
}
