//! Speed, memory, what adapters cost and what swapping them costs, measured on the user's own device.
//!
//! With and without adapters are measured in turn within one run, and compared pair by pair: a machine that slows down
//! slows both. The command line and the apps' libraries print the same [`Report`].

mod sessions;
mod swap;

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

pub use sessions::{SessionsBench, SessionsReport, SessionsRow, measure_sessions};
pub use swap::{PolicyReport, SwapBench, SwapReport, measure_swaps};

use crate::adapter::AdapterOptions;
use crate::engine::{BoundAdapter, Engine};
use crate::error::{Error, Result};
use crate::memory::of_process;
use crate::session::{GenerationOptions, SessionOptions, Usage};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Adapters with their scales; swaps are timed where there are any.
    pub adapters: Vec<(PathBuf, f32)>,
    /// How they are opened.
    pub open: AdapterOptions,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// Runs; medians are reported.
    pub runs: usize,
}

/// What half, and 99 in 100, of the times stayed within.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 99 in 100.
    pub p99: f64,
}

impl Quantiles {
    fn of(values: &[f64]) -> Self {
        Self { p50: quantile(values, 0.5), p99: quantile(values, 0.99) }
    }
}

/// What a swap costs, apart from computing the conversation anew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Swap {
    /// To an adapter that is resident.
    pub hot: Quantiles,
    /// Opening, checking and making resident a mapped file.
    pub first_use: Quantiles,
}

/// What was measured; as JSON, a contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Kind and name.
    pub device: String,
    /// Driver, backend, instruction sets.
    pub driver: String,
    /// `f32` or `int8`.
    pub activations: String,
    /// How the weights are stored.
    pub scheme: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub output_tokens: usize,
    /// Runs that the medians are of.
    pub runs: usize,
    /// Prompt tokens per second.
    pub prefill_tokens_per_second: f64,
    /// Tokens per second after the first.
    pub decode_tokens_per_second: f64,
    /// Milliseconds.
    pub time_to_first_token_ms: f64,
    /// Milliseconds.
    pub load_ms: f64,
    /// Base weights on the device.
    pub weight_bytes: u64,
    /// KV caches.
    pub cache_bytes: u64,
    /// Working memory.
    pub scratch_bytes: u64,
    /// Resident adapters.
    pub adapter_bytes: u64,
    /// The most memory the process ever held, mapped weights included; null where the system does not tell.
    pub peak_rss_bytes: Option<u64>,
    /// Time with the adapters / time without - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_adapter_overhead: Option<f64>,
    /// Time with the adapters / time without - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_adapter_overhead: Option<f64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_us: Option<Swap>,
}

/// Measures; `tick` is called after each of the `runs + 1` rounds, of which the first warms up.
pub fn measure(engine: &Engine, bench: &Bench, tick: &mut dyn FnMut()) -> Result<Report> {
    for (name, value) in [("prompt_tokens", bench.prompt_tokens), ("output_tokens", bench.output_tokens)] {
        if value == 0 {
            return Err(Error::option(name, 0, "must be at least 1"));
        }
    }
    let open = |(path, scale): &(PathBuf, f32)| Ok((engine.open_adapter_with(path, &bench.open)?, *scale));
    let adapters = bench.adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    let (plain, adapted) = responses(engine, bench, &adapters, tick)?;
    let resident = engine.resident(&adapters)?;
    let memory = engine.memory();
    drop(resident);
    let ratio = |per_second: fn(&Usage) -> f64| {
        let pairs = plain.iter().zip(&adapted).map(|(p, a)| per_second(p) / per_second(a) - 1.0).collect();
        (!adapted.is_empty()).then(|| median(pairs))
    };
    let of = |value: fn(&Usage) -> f64| median(plain.iter().map(value).collect());
    let device = engine.device_info();
    Ok(Report {
        device: format!("{} {}", device.kind, device.name),
        driver: device.detail.clone(),
        activations: format!("{:?}", device.activations).to_lowercase(),
        scheme: engine.model_info().scheme.clone(),
        prompt_tokens: bench.prompt_tokens,
        output_tokens: bench.output_tokens,
        runs: bench.runs,
        prefill_tokens_per_second: of(|u| u.prefill_tokens_per_second),
        decode_tokens_per_second: of(|u| u.decode_tokens_per_second),
        time_to_first_token_ms: of(|u| u.time_to_first_token.as_secs_f64() * 1e3),
        load_ms: engine.load_time().as_secs_f64() * 1e3,
        weight_bytes: memory.weights,
        cache_bytes: memory.caches,
        scratch_bytes: memory.scratch,
        adapter_bytes: memory.tails,
        // The high-water mark.
        peak_rss_bytes: of_process("VmHWM:"),
        decode_adapter_overhead: ratio(|u| u.decode_tokens_per_second),
        prefill_adapter_overhead: ratio(|u| u.prefill_tokens_per_second),
        swap_us: swap(engine, bench, &adapters)?,
    })
}

/// Responses without and with the adapters, in turn; the first round is thrown away.
fn responses(
    engine: &Engine,
    bench: &Bench,
    adapters: &[(BoundAdapter, f32)],
    tick: &mut dyn FnMut(),
) -> Result<(Vec<Usage>, Vec<Usage>)> {
    let vocab = engine.model_info().shape.vocab as u64;
    let prompt: Vec<u32> = (0..bench.prompt_tokens as u64).map(|i| (i * 7919 % vocab) as u32).collect();
    let options = GenerationOptions {
        temperature: Some(0.0),
        max_tokens: Some(bench.output_tokens),
        repetition_penalty: Some(1.0),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    // A session of its own each time, so that no prefix is reused.
    let once = |adapters: &[(BoundAdapter, f32)]| -> Result<Usage> {
        let of_session = SessionOptions {
            adapters: adapters.to_vec(),
            context_size: Some(bench.prompt_tokens + bench.output_tokens),
            ..SessionOptions::default()
        };
        Ok(engine.session(of_session)?.respond_to_tokens(&prompt, &options)?.collect()?.usage)
    };
    let (mut plain, mut adapted) = (Vec::new(), Vec::new());
    for round in 0..=bench.runs.max(1) {
        let without = once(&[])?;
        let with = if adapters.is_empty() { None } else { Some(once(adapters)?) };
        if round > 0 {
            plain.push(without);
            adapted.extend(with);
        }
        tick();
    }
    Ok((plain, adapted))
}

/// Times swaps of one session between resident adapters (and none), and first uses of the files.
fn swap(engine: &Engine, bench: &Bench, adapters: &[(BoundAdapter, f32)]) -> Result<Option<Swap>> {
    if adapters.is_empty() {
        return Ok(None);
    }
    let lists: Vec<&[(BoundAdapter, f32)]> = adapters.chunks(1).chain([&[][..]]).collect();
    // Held, so that every list stays resident.
    let _residents = lists.iter().map(|list| engine.resident(list)).collect::<Result<Vec<_>, _>>()?;
    let mut session =
        engine.session(SessionOptions { context_size: Some(1), ..SessionOptions::default() })?;
    let hot = (0..2000)
        .map(|i| {
            let start = Instant::now();
            session.switch_to(lists[i % lists.len()])?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect::<Result<Vec<f64>>>()?;
    let first_use = (0..30)
        .map(|i| {
            let start = Instant::now();
            let adapter =
                engine.open_adapter_with(&bench.adapters[i % bench.adapters.len()].0, &bench.open)?;
            session.switch_to(&[(adapter, 1.0)])?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect::<Result<Vec<f64>>>()?;
    Ok(Some(Swap { hot: Quantiles::of(&hot), first_use: Quantiles::of(&first_use) }))
}

fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn median(values: Vec<f64>) -> f64 {
    quantile(&values, 0.5)
}
