//! A device that fails when it is told to, around a real one, and an engine that can make it again.
#![allow(unreachable_pub, clippy::unwrap_used)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use calora::adapter::Tail;
use calora::cpu::{CpuDevice, CpuOptions};
use calora::device::{
    Activations, Answer, CacheId, Device, DeviceInfo, DeviceMemory, Forward, Model, TailId,
};
use calora::engine::{Engine, EngineEvent, EngineParts, MakeDevice, Recovery};
use calora::gpu::{GpuChoice, GpuDevice, GpuOptions};
use calora::text::TokenizerConfig;
use calora::{Error, Result};

/// Tokens of a pass.
pub const CHUNK: usize = 6;

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The system takes the device away.
    Lost,
    /// The driver refuses the work.
    Refused,
    /// There is no room; a pass finds that out after the work was done.
    OutOfMemory,
}

/// What happened and what is to happen; tests hold the other end.
#[derive(Default)]
pub struct Plan {
    /// Calls so far that may fail: caches, tails, passes, of all devices.
    pub calls: usize,
    /// By number of the call, from 1.
    pub faults: HashMap<usize, Fault>,
    /// What every pass of more tokens does: it takes the device down, as a watchdog does, or finds no room.
    pub most_tokens: Option<(usize, Fault)>,
    /// Whether the device cannot be opened again.
    pub refuses: bool,
    /// Devices opened again.
    pub opened: usize,
    pub events: Vec<EngineEvent>,
}

pub type Shared = Arc<Mutex<Plan>>;

/// Takes a device away as the system does, if that can be done to this one.
type TakeAway<D> = fn(&D);

struct Faulty<D> {
    inner: D,
    plan: Shared,
    take_away: Option<TakeAway<D>>,
    lost: bool,
}

impl<D: Device> Faulty<D> {
    fn call<T>(&mut self, tokens: usize, work: impl FnOnce(&mut D) -> Result<T>) -> Result<T> {
        let fault = {
            let mut plan = self.plan.lock().unwrap();
            plan.calls += 1;
            let number = plan.calls;
            let planned = plan.faults.get(&number).copied();
            planned.or(plan.most_tokens.filter(|(most, _)| tokens > *most).map(|(_, fault)| fault))
        };
        match fault {
            Some(Fault::Lost) => self.lost = true,
            Some(Fault::Refused) => {
                self.lost = true; // whatever comes is not to be trusted
                return Err(Error::Gpu { what: "the test's work".into(), reason: "the test says so".into() });
            }
            Some(Fault::OutOfMemory) => {
                if tokens > 0 {
                    work(&mut self.inner)?;
                }
                return Err(Error::OutOfMemory {
                    what: "the test's work".into(),
                    bytes: 1,
                    reason: "the test says so".into(),
                });
            }
            None => {}
        }
        match (self.lost, self.take_away) {
            (true, Some(take_away)) => take_away(&self.inner), // the driver itself says so then
            (true, None) => return Err(Error::DeviceLost { reason: "the test says so".into() }),
            (false, _) => {}
        }
        work(&mut self.inner)
    }
}

impl<D: Device> Device for Faulty<D> {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn memory(&self) -> DeviceMemory {
        self.inner.memory()
    }

    fn create_cache(&mut self, positions: usize) -> Result<CacheId> {
        self.call(0, |device| device.create_cache(positions))
    }

    fn drop_cache(&mut self, cache: CacheId) {
        self.inner.drop_cache(cache);
    }

    fn load_tails(&mut self, tails: &[&Tail]) -> Result<TailId> {
        self.call(0, |device| device.load_tails(tails))
    }

    fn drop_tail(&mut self, tail: TailId) {
        self.inner.drop_tail(tail);
    }

    fn read_cache(&mut self, cache: CacheId, positions: usize) -> Result<Vec<u8>> {
        self.call(0, |device| device.read_cache(cache, positions))
    }

    fn write_cache(&mut self, cache: CacheId, bytes: &[u8]) -> Result<()> {
        self.call(0, |device| device.write_cache(cache, bytes))
    }

    fn forward_batch(&mut self, passes: &[Forward<'_>]) -> Result<Vec<Answer>> {
        let tokens = passes.iter().map(|pass| pass.tokens.len()).sum();
        self.call(tokens, |device| device.forward_batch(passes))
    }
}

fn cpu(model: &Model) -> Result<CpuDevice> {
    let (activations, max_tokens) = (Activations::F32, CHUNK);
    CpuDevice::new(model, CpuOptions { threads: Some(1), activations, max_tokens, simd: None })
}

/// Makes CPU devices that fail as planned.
pub fn failing_cpu(model: &Model, plan: &Shared) -> MakeDevice {
    let (model, plan) = (model.clone(), plan.clone());
    Box::new(move || {
        let plan = plan.clone();
        Ok(Box::new(Faulty { inner: cpu(&model)?, plan, take_away: None, lost: false }) as _)
    })
}

/// Makes GPU devices that are taken away as planned.
pub fn failing_gpu(model: &Model, plan: &Shared) -> MakeDevice {
    let (model, plan) = (model.clone(), plan.clone());
    Box::new(move || {
        let options = GpuOptions {
            activations: Activations::F32,
            max_tokens: CHUNK,
            choice: GpuChoice::Any,
            ..GpuOptions::default()
        };
        let inner = GpuDevice::new(&model, options)?;
        let take_away: Option<TakeAway<GpuDevice>> = Some(GpuDevice::destroy);
        Ok(Box::new(Faulty { inner, plan: plan.clone(), take_away, lost: false }) as _)
    })
}

/// Makes CPU devices that never fail.
pub fn sound_cpu(model: &Model) -> MakeDevice {
    let model = model.clone();
    Box::new(move || Ok(Box::new(cpu(&model)?) as _))
}

/// An engine on a device that can be made again unless the plan refuses; its events go to the plan.
pub fn engine(
    model: &Model,
    config: &serde_json::Value,
    plan: &Shared,
    (mut make, cpu): (MakeDevice, Option<MakeDevice>),
    adapter_budget: u64,
) -> Engine {
    let device = make().unwrap();
    let counted = plan.clone();
    let again: MakeDevice = Box::new(move || {
        let mut plan = counted.lock().unwrap();
        if plan.refuses {
            return Err(Error::NoDevice { wanted: "gpu".into(), reason: "the test says so".into() });
        }
        plan.opened += 1;
        drop(plan);
        make()
    });
    let engine = Engine::from_parts(EngineParts {
        model: model.clone(),
        device,
        recovery: Some(Recovery { again, cpu }),
        folder: "test".into(),
        files: None,
        scheme: "none".into(),
        tokenizer: None,
        tokenizer_config: TokenizerConfig::default(),
        config: config.clone(),
        generation_config: serde_json::Value::Null,
        context_size: Some(96),
        prefill_chunk: Some(CHUNK),
        adapter_budget: Some(adapter_budget),
        prefix_budget: None,
        prefix_folder: None,
    })
    .unwrap();
    let told = plan.clone();
    engine.listen(move |event| told.lock().unwrap().events.push(event.clone()));
    engine
}
