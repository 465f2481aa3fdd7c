//! `calora bench`: speed, memory, what adapters cost and what swapping them costs.
//!
//! With and without adapters are measured in turn within one run, and compared pair by pair: a machine that slows down
//! slows both.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use calora::engine::{BoundAdapter, Engine};
use calora::session::{GenerationOptions, SessionOptions, Usage};
use calora_models::plot::{Bar, bars};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{AdapterArgs, LoadArgs};
use crate::output;

/// Measures prefill, decode, time to first token, memory, adapter overhead and swaps.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model folder.
    model: PathBuf,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens of the answer.
    #[arg(long, default_value_t = 32)]
    output_tokens: usize,
    /// Runs; medians are reported.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// Write a bar chart as SVG.
    #[arg(long)]
    plot: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
}

/// Microseconds that half, and 99 in 100, of the swaps stayed within.
#[derive(Debug, Serialize)]
struct Quantiles {
    p50: f64,
    p99: f64,
}

/// `hot`: to an adapter that is resident. `first_use`: opening, checking and making resident a mapped file.
#[derive(Debug, Serialize)]
struct Swap {
    hot: Quantiles,
    first_use: Quantiles,
}

/// What is printed as JSON; a contract.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    driver: String,
    activations: String,
    scheme: String,
    prompt_tokens: usize,
    output_tokens: usize,
    runs: usize,
    prefill_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    time_to_first_token_ms: f64,
    load_ms: f64,
    weight_bytes: u64,
    cache_bytes: u64,
    scratch_bytes: u64,
    adapter_bytes: u64,
    /// The most memory the process ever held, mapped weights included; null where the system does not tell.
    peak_rss_bytes: Option<u64>,
    /// Time with the adapters / time without - 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    decode_adapter_overhead: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prefill_adapter_overhead: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_us: Option<Swap>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let engine = args.load.load(&args.model)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let adapters = args.adapters.open(&engine)?;
    let bar = output::progress(args.runs as u64 + 1, "runs");
    let (plain, adapted) = measure(args, &engine, &adapters, &bar)?;
    bar.finish_and_clear();
    let resident = engine.resident(&adapters)?;
    let memory = engine.memory();
    drop(resident);
    let ratio = |per_second: fn(&Usage) -> f64| {
        let pairs = plain.iter().zip(&adapted).map(|(p, a)| per_second(p) / per_second(a) - 1.0).collect();
        (!adapted.is_empty()).then(|| median(pairs))
    };
    let of = |value: fn(&Usage) -> f64| median(plain.iter().map(value).collect());
    let device = engine.device_info();
    let report = Report {
        device: format!("{} {}", device.kind, device.name),
        driver: device.detail.clone(),
        activations: format!("{:?}", device.activations).to_lowercase(),
        scheme: engine.model_info().scheme.clone(),
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        runs: args.runs,
        prefill_tokens_per_second: of(|u| u.prefill_tokens_per_second),
        decode_tokens_per_second: of(|u| u.decode_tokens_per_second),
        time_to_first_token_ms: of(|u| u.time_to_first_token.as_secs_f64() * 1e3),
        load_ms,
        weight_bytes: memory.weights,
        cache_bytes: memory.caches,
        scratch_bytes: memory.scratch,
        adapter_bytes: memory.tails,
        peak_rss_bytes: peak_rss(),
        decode_adapter_overhead: ratio(|u| u.decode_tokens_per_second),
        prefill_adapter_overhead: ratio(|u| u.prefill_tokens_per_second),
        swap_us: swap(args, &engine, &adapters)?,
    };
    if let Some(path) = &args.plot {
        plot(&report, path)?;
    }
    if args.json { output::json(&report) } else { table(&report) }
}

/// Runs without and with the adapters, in turn; the first round warms up and is thrown away.
fn measure(
    args: &Args,
    engine: &Engine,
    adapters: &[(BoundAdapter, f32)],
    bar: &ProgressBar,
) -> Result<(Vec<Usage>, Vec<Usage>)> {
    let vocab = engine.model_info().shape.vocab as u64;
    let prompt: Vec<u32> = (0..args.prompt_tokens as u64).map(|i| (i * 7919 % vocab) as u32).collect();
    let options = GenerationOptions {
        temperature: Some(0.0),
        max_tokens: Some(args.output_tokens),
        repetition_penalty: Some(1.0),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    // A session of its own each time, so that no prefix is reused.
    let once = |adapters: &[(BoundAdapter, f32)]| -> Result<Usage> {
        let options_of_session = SessionOptions {
            adapters: adapters.to_vec(),
            context_size: Some(args.prompt_tokens + args.output_tokens),
            ..SessionOptions::default()
        };
        Ok(engine.session(options_of_session)?.respond_to_tokens(&prompt, &options)?.collect()?.usage)
    };
    let (mut plain, mut adapted) = (Vec::new(), Vec::new());
    for round in 0..=args.runs.max(1) {
        let without = once(&[])?;
        let with = if adapters.is_empty() { None } else { Some(once(adapters)?) };
        if round > 0 {
            plain.push(without);
            adapted.extend(with);
        }
        bar.inc(1);
    }
    Ok((plain, adapted))
}

/// Times swaps of one session between resident adapters (and none), and first uses of the files.
fn swap(args: &Args, engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Result<Option<Swap>> {
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
    let paths = args.adapters.parse()?;
    let first_use = (0..30)
        .map(|i| {
            let start = Instant::now();
            let adapter = engine.open_adapter(&paths[i % paths.len()].0)?;
            session.switch_to(&[(adapter, 1.0)])?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect::<Result<Vec<f64>>>()?;
    let quantiles =
        |values: Vec<f64>| Quantiles { p50: quantile(&values, 0.5), p99: quantile(&values, 0.99) };
    Ok(Some(Swap { hot: quantiles(hot), first_use: quantiles(first_use) }))
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

/// The high-water mark of resident memory, as Linux and Android tell it.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

fn table(r: &Report) -> Result<()> {
    output::line(format!("{}, {}, {} activations, {}", r.device, r.driver, r.activations, r.scheme))?;
    output::line(format!(
        "prefill               {:>10.1} tokens/s ({} tokens)",
        r.prefill_tokens_per_second, r.prompt_tokens
    ))?;
    output::line(format!(
        "decode                {:>10.1} tokens/s ({} tokens)",
        r.decode_tokens_per_second, r.output_tokens
    ))?;
    output::line(format!("time to first token   {:>10.2} ms", r.time_to_first_token_ms))?;
    output::line(format!("load                  {:>10.1} ms", r.load_ms))?;
    for (name, bytes) in [
        ("weights", Some(r.weight_bytes)),
        ("adapters", (r.adapter_bytes > 0).then_some(r.adapter_bytes)),
        ("peak memory", r.peak_rss_bytes),
    ] {
        if let Some(bytes) = bytes {
            output::line(format!("{name:<21} {:>10}", output::bytes(bytes)))?;
        }
    }
    for (name, value) in [
        ("adapters in decode", r.decode_adapter_overhead),
        ("adapters in prefill", r.prefill_adapter_overhead),
    ] {
        if let Some(value) = value {
            output::line(format!("{name:<21} {:>+9.1} %", value * 100.0))?;
        }
    }
    if let Some(swap) = &r.swap_us {
        output::line(format!("hot swap              {:>10.1} us (p99 {:.1})", swap.hot.p50, swap.hot.p99))?;
        output::line(format!(
            "first use             {:>10.1} us (p99 {:.1})",
            swap.first_use.p50, swap.first_use.p99
        ))?;
    }
    Ok(())
}

fn plot(r: &Report, path: &Path) -> Result<()> {
    let bar = |label: &str, value: f64, unit: &str| Bar {
        label: label.into(),
        value,
        text: if value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.2} {unit}") },
    };
    let mut groups = vec![
        (
            "Speed without adapters".to_owned(),
            vec![
                bar("prefill", r.prefill_tokens_per_second, "tokens/s"),
                bar("decode", r.decode_tokens_per_second, "tokens/s"),
            ],
        ),
        (
            "Waiting".to_owned(),
            vec![bar("load", r.load_ms, "ms"), bar("first token", r.time_to_first_token_ms, "ms")],
        ),
    ];
    let overheads: Vec<Bar> =
        [("in decode", r.decode_adapter_overhead), ("in prefill", r.prefill_adapter_overhead)]
            .into_iter()
            .filter_map(|(label, value)| Some(bar(label, value? * 100.0, "%")))
            .collect();
    if !overheads.is_empty() {
        groups.push(("What the adapters cost".to_owned(), overheads));
    }
    if let Some(swap) = &r.swap_us {
        let times = vec![
            bar("hot, half within", swap.hot.p50, "us"),
            bar("hot, 99 % within", swap.hot.p99, "us"),
            bar("first use, half within", swap.first_use.p50, "us"),
            bar("first use, 99 % within", swap.first_use.p99, "us"),
        ];
        groups.push(("Swapping a task".to_owned(), times));
    }
    let title = format!("{} on {}", r.scheme, r.device);
    Ok(std::fs::write(path, bars(&title, &groups))?)
}
