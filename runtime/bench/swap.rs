//! What many tasks over one model cost: a folder of them mapped, some resident, swaps, and the first token after a swap.
//!
//! Times are of a clock on the wall, so what a swap costs the processor is at most that.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::Quantiles;
use crate::engine::{BoundAdapter, Engine};
use crate::error::{Error, Result};
use crate::library::AdapterLibrary;
use crate::memory::of_process;
use crate::session::{CachePolicy, GenerationOptions, Session, SessionOptions};

/// Hot swaps that are timed.
const HOT: usize = 2000;

/// Tokens that a conversation goes on with after a swap.
const TURN: usize = 8;

/// What is measured.
#[derive(Clone, Debug)]
pub struct SwapBench {
    /// A folder of task files of this model, more than `resident`.
    pub folder: PathBuf,
    /// How many of them are resident at once.
    pub resident: usize,
    /// Tokens of the conversation in which the task is swapped.
    pub prompt_tokens: usize,
    /// Swaps for each cache policy.
    pub runs: usize,
}

/// What was measured; as JSON, a contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SwapReport {
    /// Kind and name.
    pub device: String,
    /// Driver, backend, instruction sets.
    pub driver: String,
    /// `f32` or `int8`.
    pub activations: String,
    /// How the weights are stored.
    pub scheme: String,
    /// Task files in the folder.
    pub tasks: usize,
    /// How many of them were resident at once.
    pub resident: usize,
    /// Milliseconds to find, map and bind all of them.
    pub open_ms: f64,
    /// Bytes of branches in all of them.
    pub mapped_bytes: u64,
    /// What opening all of them added to the process's resident memory; null where the system does not tell.
    pub open_memory_bytes: Option<i64>,
    /// Bytes of branches in the files of those that were resident.
    pub resident_file_bytes: u64,
    /// What they were to take on the device by their headers.
    pub planned_resident_bytes: u64,
    /// What they took on the device.
    pub resident_bytes: u64,
    /// What making them resident added to the process's private memory; null where the system does not tell.
    pub resident_memory_bytes: Option<i64>,
    /// Weights, working memory and those adapters by the plan, made before anything was loaded.
    pub planned_bytes: u64,
    /// The same as the device held it, no session being open.
    pub held_bytes: u64,
    /// Microseconds: to another resident task.
    pub hot_us: Quantiles,
    /// Milliseconds: to a task that is mapped, in the page cache and not resident, as an app has it: a response was
    /// computed since the last one.
    pub first_use_ms: Quantiles,
    /// Milliseconds for each MB (10^6 bytes) of such a task's branches; the median.
    pub first_use_ms_per_mb: f64,
    /// The same of those that followed another first use at once, in memory that is new to the process.
    pub in_a_row_ms_per_mb: Option<f64>,
    /// The same of those that followed another one at once and took the place of tasks that had to go. Null where none had
    /// to.
    pub replacing_ms_per_mb: Option<f64>,
    /// Tokens of the conversation before the swap.
    pub prompt_tokens: usize,
    /// From the swap to the next response's first token.
    pub policies: Vec<PolicyReport>,
}

/// One way to treat the KV cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyReport {
    /// Its name.
    pub policy: &'static str,
    /// Whether the response is what a new session would give.
    pub exact: bool,
    /// Tokens of the conversation at the swap.
    pub transcript_tokens: usize,
    /// How many of them were not computed again.
    pub cached_tokens: usize,
    /// Milliseconds to the first token, the median.
    pub p50: f64,
    /// 99 in 100.
    pub p99: f64,
    /// All of them, in order.
    pub first_token_ms: Vec<f64>,
}

/// Measures; `tick` is called after each of the policies.
pub fn measure_swaps(engine: &Engine, bench: &SwapBench, tick: &mut dyn FnMut()) -> Result<SwapReport> {
    if bench.resident < 2 || bench.runs == 0 || bench.prompt_tokens == 0 {
        let reason = "swaps need at least two resident tasks, one run and one token";
        return Err(Error::option("swap benchmark", format!("{bench:?}"), reason));
    }
    let anonymous = || of_process("RssAnon:");
    let since = |before: Option<u64>| anonymous().zip(before).map(|(now, before)| now as i64 - before as i64);
    let before = anonymous();
    let (library, open_ms) = timed(|| AdapterLibrary::open(engine, &bench.folder))?;
    let names: Vec<String> = library.entries().into_iter().map(|entry| entry.name).collect();
    if names.len() <= bench.resident {
        let reason = format!("must be less than the {} task files of the folder", names.len());
        return Err(Error::option("resident", bench.resident, reason));
    }
    let (adapters, bind_ms) =
        timed(|| names.iter().map(|name| library.get(name)).collect::<Result<Vec<_>>>())?;
    let open_memory_bytes = since(before);
    let (hot, cold) = adapters.split_at(bench.resident);
    let planned = hot.iter().map(|adapter| engine.adapter_bytes(adapter)).collect::<Result<Vec<u64>>>()?;
    let planned_resident_bytes = planned.iter().sum();
    engine.evict_idle();
    let (tails, before) = (engine.memory().tails, anonymous());
    library.preload(&names[..bench.resident])?;
    let resident_memory_bytes = since(before);
    let memory = engine.memory();
    let resident_bytes = memory.tails - tails;
    let fixed = engine.memory_plan().map_or(memory.weights + memory.scratch, |p| p.weights + p.scratch);

    let mut session =
        engine.session(SessionOptions { context_size: Some(1), ..SessionOptions::default() })?;
    let swap = |session: &mut Session, adapter: &BoundAdapter| {
        let list = [(adapter.clone(), 1.0)];
        Ok(timed(|| session.switch_to(&list))?.1)
    };
    let hot_ms = (0..HOT).map(|i| swap(&mut session, &hot[i % hot.len()])).collect::<Result<Vec<f64>>>()?;
    let (mut first_ms, mut per_mb, mut in_a_row, mut replacing) =
        <(Vec<_>, Vec<_>, Vec<_>, Vec<_>)>::default();
    for (i, adapter) in cold.iter().enumerate() {
        let (responds, held) = (i % 2 == 0, engine.memory().tails);
        if responds {
            first_token(&mut session, &[0])?;
        }
        let ms = swap(&mut session, adapter)?;
        let of_one = ms / (adapter.byte_len() as f64 / 1e6);
        if responds {
            first_ms.push(ms);
        }
        let list = match (responds, engine.memory().tails > held) {
            (true, _) => &mut per_mb,
            (false, true) => &mut in_a_row,
            (false, false) => &mut replacing,
        };
        list.push(of_one);
    }
    let median = |list: Vec<f64>| (!list.is_empty()).then(|| super::median(list));

    let mut policies = Vec::new();
    for (policy, name) in [
        (CachePolicy::Recompute, "recompute"),
        (CachePolicy::Restore, "restore"),
        (CachePolicy::Keep, "keep"),
    ] {
        policies.push(first_tokens(engine, bench, [&hot[0], &hot[1]], (policy, name))?);
        tick();
    }
    let (device, bytes) = (engine.device_info(), |list: &[BoundAdapter]| -> u64 {
        list.iter().map(|adapter| adapter.byte_len() as u64).sum()
    });
    Ok(SwapReport {
        device: format!("{} {}", device.kind, device.name),
        driver: device.detail.clone(),
        activations: format!("{:?}", device.activations).to_lowercase(),
        scheme: engine.model_info().scheme.clone(),
        tasks: names.len(),
        resident: bench.resident,
        open_ms: open_ms + bind_ms,
        mapped_bytes: bytes(&adapters),
        open_memory_bytes,
        resident_file_bytes: bytes(hot),
        planned_resident_bytes,
        resident_bytes,
        resident_memory_bytes,
        planned_bytes: fixed + planned_resident_bytes,
        held_bytes: memory.weights + memory.scratch + resident_bytes,
        hot_us: Quantiles::of(&hot_ms.iter().map(|ms| ms * 1e3).collect::<Vec<_>>()),
        first_use_ms: Quantiles::of(&first_ms),
        first_use_ms_per_mb: super::median(per_mb),
        in_a_row_ms_per_mb: median(in_a_row),
        replacing_ms_per_mb: median(replacing),
        prompt_tokens: bench.prompt_tokens,
        policies,
    })
}

/// From the swap to the first token of the next turn, again and again in sessions of their own.
///
/// Restoring is timed on the way back: one task held the conversation, another one turn of it.
fn first_tokens(
    engine: &Engine,
    bench: &SwapBench,
    [mine, other]: [&BoundAdapter; 2],
    (policy, name): (CachePolicy, &'static str),
) -> Result<PolicyReport> {
    let vocab = engine.model_info().shape.vocab as u64;
    let mut tokens = (1..).map(|i: u64| (i * 7919 % vocab) as u32);
    let (mine, other) = ([(mine.clone(), 1.0)], [(other.clone(), 1.0)]);
    let (mut times, mut report) = (Vec::new(), None);
    for _ in 0..bench.runs {
        // A conversation of its own each time, so that nothing is known of it.
        let prompt: Vec<u32> = tokens.by_ref().take(bench.prompt_tokens).collect();
        let context_size = Some(bench.prompt_tokens + 3 * (TURN + 1));
        let options = SessionOptions { adapters: mine.to_vec(), context_size, ..SessionOptions::default() };
        let mut session = engine.session(options)?;
        first_token(&mut session, &prompt)?;
        let mut turn = || tokens.by_ref().take(TURN).collect::<Vec<u32>>();
        let target = match policy {
            CachePolicy::Restore => {
                session.switch_with(&other, policy)?;
                let next = [session.tokens(), &turn()].concat();
                first_token(&mut session, &next)?;
                &mine
            }
            _ => &other,
        };
        let next = [session.tokens(), &turn()].concat();
        let (switched, ms) = timed(|| {
            let switched = session.switch_with(target, policy)?;
            first_token(&mut session, &next)?;
            Ok(switched)
        })?;
        times.push(ms);
        report = Some(switched);
    }
    let (report, quantiles) = (report.unwrap_or_default(), Quantiles::of(&times));
    times.sort_by(f64::total_cmp);
    Ok(PolicyReport {
        policy: name,
        exact: report.is_exact(),
        transcript_tokens: report.transcript_tokens,
        cached_tokens: report.cached_tokens,
        p50: quantiles.p50,
        p99: quantiles.p99,
        first_token_ms: times,
    })
}

/// One token after a transcript.
fn first_token(session: &mut Session, transcript: &[u32]) -> Result<()> {
    let options = GenerationOptions {
        max_tokens: Some(1),
        temperature: Some(0.0),
        repetition_penalty: Some(1.0),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    session.respond_to_tokens(transcript, &options)?.collect().map(drop)
}

/// A result with the milliseconds it took.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let start = Instant::now();
    let result = work()?;
    Ok((result, start.elapsed().as_secs_f64() * 1e3))
}
