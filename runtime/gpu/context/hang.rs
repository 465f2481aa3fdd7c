//! Tests of a GPU that hangs: it is lost after a while, nobody waits for it any more, and another can be opened.
#![cfg(test)]

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::Context;
use crate::error::{Error, Result};
use crate::gpu::{FactsOptions, GpuChoice, select};

/// Hours on a processor, and more than a moment on a GPU.
const ENDLESS: &str = "
    @group(0) @binding(0) var<storage, read_write> x: array<u32>;
    @compute @workgroup_size(64)
    fn main(@builtin(global_invocation_id) id: vec3<u32>) {
        var v = id.x;
        for (var i = 0u; i < 60000u; i++) { v = v * 1664525u + 1013904223u; }
        x[id.x & 63u] = v;
    }";

fn open() -> Result<Context> {
    Ok(select::open(&GpuChoice::Any, &FactsOptions::default())?.context)
}

fn submit_endless(context: &Context) -> Result<()> {
    let buffer = context.storage("a hang", 256)?;
    context.guard("a hang", 0, || {
        let module = context.device.create_shader_module(wgpu::ShaderModuleDescriptor {
            label: None,
            source: wgpu::ShaderSource::Wgsl(ENDLESS.into()),
        });
        let pipeline = context.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let group = context.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: buffer.as_entire_binding() }],
        });
        let mut encoder = context.device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &group, &[]);
        (0..400).for_each(|_| pass.dispatch_workgroups(65535, 1, 1));
        drop(pass);
        context.queue.submit([encoder.finish()]);
    })
}

/// What a device that works gives back.
fn echo(context: &Context) -> Result<Vec<u8>> {
    let source = context.upload("a value", &[7; 16])?;
    let target = context.buffer("its copy", 16, wgpu::BufferUsages::MAP_READ)?;
    context.guard("an echo", 16, || {
        let mut encoder = context.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&source, 0, &target, 0, 16);
        context.queue.submit([encoder.finish()]);
    })?;
    context.read(&target, 16)
}

/// Not a test: a process with a GPU that hangs. It does not end by itself either: software computes in its threads.
#[test]
#[ignore = "a child process of another test"]
fn wait_in_vain() {
    if std::env::var_os("CALORA_HANGING_GPU").is_none() {
        return;
    }
    let is_lost = |result: Result<()>| matches!(result, Err(Error::DeviceLost { reason }) if reason.contains("did not answer for 50ms"));
    let survives = || {
        let context = open()?;
        submit_endless(&context)?;
        let lost = is_lost(context.wait("a result", Some(Duration::from_millis(50))));
        let stays_lost = is_lost(context.storage("a buffer", 16).map(drop));
        // Does not wait for the work either.
        drop(context);
        Ok::<_, Error>(lost && stays_lost && echo(&open()?)? == [7; 16])
    };
    let survived = survives();
    if matches!(survived, Ok(true)) {
        std::process::abort();
    }
    unreachable!("{survived:?}");
}

#[test]
fn a_gpu_that_hangs_is_lost_and_left() {
    let mut child = Command::new(std::env::current_exe().unwrap_or_default());
    child.args(["--ignored", "--exact", "--nocapture", "gpu::context::hang::wait_in_vain"]);
    child.env("CALORA_HANGING_GPU", "1").stdout(Stdio::null());
    let Ok(mut child) = child.spawn() else { unreachable!("this program runs") };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(120) {
        if let Ok(Some(status)) = child.try_wait() {
            assert!(status.code().is_none(), "{status}: it was to end by a signal of its own");
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    unreachable!("it waited for the hanging GPU");
}
