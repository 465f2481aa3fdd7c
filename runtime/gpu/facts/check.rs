//! One kernel on the real driver: does it compile, does it compute what its twin does, how long does it take.

use std::time::{Duration, Instant};

use super::suite::{Case, Expected, cases};
use super::values::{Form, decode};
use crate::error::{Error, Result};
use crate::gpu::context::Context;
use crate::gpu::pipeline::Pipelines;
use crate::kernels::{BLOCK, Kernel};

/// How long a kernel may take for a case before the GPU counts as hanging, and lost: they take milliseconds, also on software.
const PATIENCE: Duration = Duration::from_secs(30);

/// Dispatches of one sample of a time at most, and the microseconds that they should take together.
const REPEATS: f64 = 16.0;
const ENOUGH: f64 = 2000.0;
/// Samples at least, and how long they go on: a GPU that was idle is slow at first.
const SAMPLES: usize = 6;
const LONG: Duration = Duration::from_millis(20);

/// What a kernel did with its cases.
pub(super) enum Outcome {
    /// The largest error, as a fraction of the largest value.
    Passed(f64),
    Failed(String),
}

/// Runs every case of a kernel. An error is not the kernel's fault: no memory; a device that is lost may be.
pub(super) fn check(context: &Context, pipelines: &mut Pipelines, kernel: Kernel) -> Result<Outcome> {
    let mut worst = 0.0f64;
    for case in cases(kernel)? {
        let ready = match Ready::new(context, pipelines, kernel, &case) {
            Ok(ready) => ready,
            Err(Error::Gpu { reason, .. }) => return Ok(Outcome::Failed(reason)),
            Err(error) => return Err(error),
        };
        let results = match ready.run(context, &case) {
            Ok(results) => results,
            Err(Error::Gpu { reason, .. }) => return Ok(Outcome::Failed(reason)),
            Err(error) => return Err(error),
        };
        for (expected, bytes) in case.expected.iter().zip(&results) {
            match compare(expected, bytes) {
                Ok(error) => worst = worst.max(error),
                Err(reason) => return Ok(Outcome::Failed(reason)),
            }
        }
    }
    Ok(Outcome::Passed(worst))
}

/// The largest error, or the element that is wrong.
fn compare(expected: &Expected, bytes: &[u8]) -> Result<f64, String> {
    let actual = decode(expected.form, bytes);
    let largest = expected.values.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let mut worst = 0.0f64;
    for (at, wanted) in expected.values.iter().enumerate() {
        let is = actual.get(at).copied().unwrap_or(f64::NAN);
        let error = (is - wanted).abs() / largest;
        if error.is_nan() || error > expected.tolerance {
            return Err(format!("element {at} is {is}, expected {wanted}; the largest is {largest}"));
        }
        worst = worst.max(error);
    }
    Ok(worst)
}

/// A case on the device.
struct Ready {
    pipeline: wgpu::ComputePipeline,
    groups: [Option<wgpu::BindGroup>; 3],
    buffers: [Vec<wgpu::Buffer>; 3],
}

impl Ready {
    fn new(context: &Context, pipelines: &mut Pipelines, kernel: Kernel, case: &Case) -> Result<Self> {
        let pipeline = pipelines.get(context, kernel)?;
        let (mut groups, mut buffers) = ([const { None }; 3], [const { Vec::new() }; 3]);
        for (i, bindings) in kernel.groups().into_iter().enumerate() {
            let Some(bindings) = bindings else { continue };
            for (binding, content) in case.groups[i].iter().enumerate() {
                let buffer = if i == 2 && binding == 0 {
                    let buffer =
                        context.buffer("a self-test's parameters", 256, wgpu::BufferUsages::UNIFORM)?;
                    context.write("a self-test's parameters", &buffer, 0, &case.params)?;
                    buffer
                } else {
                    context.upload("a self-test's values", content)?
                };
                buffers[i].push(buffer);
            }
            let list: Vec<&wgpu::Buffer> = buffers[i].iter().collect();
            groups[i] = Some(pipelines.bind(context, bindings, &list)?);
        }
        Ok(Self { pipeline, groups, buffers })
    }

    /// The dispatch, a number of times.
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, grid: [u32; 3], times: u32) {
        pass.set_pipeline(&self.pipeline);
        for (i, group) in self.groups.iter().enumerate() {
            if let Some(group) = group {
                pass.set_bind_group(i as u32, group, if i == 2 { &[0] } else { &[] });
            }
        }
        for _ in 0..times {
            pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        }
    }

    /// One dispatch, and the buffers that it should have written.
    fn run(&self, context: &Context, case: &Case) -> Result<Vec<Vec<u8>>> {
        let sizes: Vec<u64> = case.expected.iter().map(bytes_of).collect();
        let total: u64 = sizes.iter().sum();
        let what = "a self-test";
        let target = context.buffer(what, total, wgpu::BufferUsages::MAP_READ)?;
        context.guard(what, total, || {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            self.encode(&mut pass, case.grid, 1);
            drop(pass);
            let mut at = 0;
            for (expected, size) in case.expected.iter().zip(&sizes) {
                let (group, binding) = expected.at;
                encoder.copy_buffer_to_buffer(&self.buffers[group][binding], 0, &target, at, *size);
                at += size;
            }
            context.queue.submit([encoder.finish()]);
        })?;
        let bytes = context.read_within(Some(PATIENCE), &target, total)?;
        let mut rest = bytes.as_slice();
        let mut results = Vec::new();
        for size in sizes {
            let (result, after) = rest.split_at(size as usize);
            results.push(result.to_vec());
            rest = after;
        }
        Ok(results)
    }

    /// Microseconds of one dispatch among so many.
    fn sample(&self, context: &Context, grid: [u32; 3], timer: Option<&Timer>, times: u32) -> Result<f64> {
        let start = Instant::now();
        let encoded = |encoder: &mut wgpu::CommandEncoder| {
            let descriptor = wgpu::ComputePassDescriptor {
                label: None,
                timestamp_writes: timer.map(|timer| wgpu::ComputePassTimestampWrites {
                    query_set: &timer.queries,
                    beginning_of_pass_write_index: Some(0),
                    end_of_pass_write_index: Some(1),
                }),
            };
            self.encode(&mut encoder.begin_compute_pass(&descriptor), grid, times);
        };
        let what = "a kernel's time";
        context.guard(what, 0, || {
            let mut encoder = context.device.create_command_encoder(&Default::default());
            encoded(&mut encoder);
            if let Some(timer) = timer {
                encoder.resolve_query_set(&timer.queries, 0..2, &timer.resolved, 0);
                encoder.copy_buffer_to_buffer(&timer.resolved, 0, &timer.readback, 0, 16);
            }
            context.queue.submit([encoder.finish()]);
        })?;
        context.wait(what, Some(PATIENCE))?;
        let micros = match timer {
            Some(timer) => timer.read(context)?,
            None => start.elapsed().as_secs_f64() * 1e6,
        };
        Ok(micros / f64::from(times))
    }
}

fn bytes_of(expected: &Expected) -> u64 {
    let count = expected.values.len();
    (match expected.form {
        Form::F32 | Form::U32 => count * 4,
        Form::F16 => count * 2,
        Form::Rounded(_) => count / BLOCK * (BLOCK + 16),
    }) as u64
}

/// Timestamps of the GPU itself.
struct Timer {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readback: wgpu::Buffer,
    /// Nanoseconds of a tick.
    period: f64,
}

impl Timer {
    fn new(context: &Context) -> Result<Option<Self>> {
        if !context.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
            return Ok(None);
        }
        let what = "timestamps";
        let queries = context.guard(what, 16, || {
            context.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        })?;
        let resolve = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        Ok(Some(Self {
            queries,
            resolved: context.buffer(what, 16, resolve)?,
            readback: context.buffer(what, 16, wgpu::BufferUsages::MAP_READ)?,
            period: f64::from(context.queue.get_timestamp_period()),
        }))
    }

    /// Microseconds between the two.
    fn read(&self, context: &Context) -> Result<f64> {
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&context.read(&self.readback, 16)?);
        Ok(ticks[1].saturating_sub(ticks[0]) as f64 * self.period / 1e3)
    }
}

/// The median time of a kernel's dispatch on a phone's sizes, in microseconds, over the later half of its samples.
pub(super) fn time(context: &Context, pipelines: &mut Pipelines, kernel: Kernel, case: &Case) -> Result<f64> {
    let ready = Ready::new(context, pipelines, kernel, case)?;
    let mut timer = Timer::new(context)?;
    // The first warms up, and shows whether the timestamps count.
    let first = ready.sample(context, case.grid, timer.as_ref(), 1)?;
    if first <= 0.0 {
        timer = None;
    }
    let times = (ENOUGH / first).clamp(1.0, REPEATS) as u32;
    let (start, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < SAMPLES || start.elapsed() < LONG {
        samples.push(ready.sample(context, case.grid, timer.as_ref(), times)?);
    }
    let mut later = samples.split_off(samples.len() / 2);
    later.sort_by(f64::total_cmp);
    Ok(later[later.len() / 2])
}
