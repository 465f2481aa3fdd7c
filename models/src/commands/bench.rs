//! `calora bench`: speed, memory, what adapters cost and what swapping them costs; `calora::bench` measures.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calora::bench::{Bench, Report, SessionsBench, measure};
use calora_models::plot::{Bar, bars};

use super::bench_swap::SwapArgs;
use super::{AdapterArgs, LoadArgs, bench_sessions};
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
    /// Measure up to so many sessions at once instead, with the given adapters in turn: decoding together and in turn.
    #[arg(long, conflicts_with = "swap")]
    sessions: Option<usize>,
    #[command(flatten)]
    swap: SwapArgs,
    #[command(flatten)]
    load: LoadArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let engine = args.load.load(&args.model)?;
    if args.swap.wanted() {
        let (adapters, open) = (args.adapters.parse()?, args.adapters.options()?);
        let (size, out) = ((args.prompt_tokens, args.runs), (args.json, args.plot.as_deref()));
        return args.swap.run(&engine, &adapters, &open, size, out);
    }
    if let Some(sessions) = args.sessions {
        let bench = SessionsBench {
            adapters: args.adapters.parse()?,
            open: args.adapters.options()?,
            sessions,
            prompt_tokens: args.prompt_tokens,
            output_tokens: args.output_tokens,
            runs: args.runs,
        };
        return bench_sessions::run(&engine, &bench, (args.json, args.plot.as_deref()));
    }
    let bench = Bench {
        adapters: args.adapters.parse()?,
        open: args.adapters.options()?,
        prompt_tokens: args.prompt_tokens,
        output_tokens: args.output_tokens,
        runs: args.runs,
    };
    let bar = output::progress(args.runs as u64 + 1, "runs");
    let report = measure(&engine, &bench, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    if let Some(path) = &args.plot {
        plot(&report, path)?;
    }
    if args.json { output::json(&report) } else { table(&report) }
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
    Ok(calora::weights::write_atomically(path, bars(&title, &groups).as_bytes())?)
}
