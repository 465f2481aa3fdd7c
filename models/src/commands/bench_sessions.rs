//! `calora bench --sessions`: what sessions gain by decoding together; `calora::bench::measure_sessions` measures.

use std::path::Path;

use anyhow::Result;
use calora::bench::{SessionsBench, SessionsReport, measure_sessions};
use calora::engine::Engine;
use calora_models::plot::{Series, lines};

use crate::output;

/// Measures and prints.
pub(crate) fn run(engine: &Engine, bench: &SessionsBench, (json, plot): (bool, Option<&Path>)) -> Result<()> {
    let bar = output::progress(bench.counts().len() as u64, "numbers of sessions");
    let report = measure_sessions(engine, bench, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    if let Some(path) = plot {
        calora::weights::write_atomically(path, chart(&report).as_bytes())?;
    }
    if json { output::json(&report) } else { table(&report) }
}

fn table(r: &SessionsReport) -> Result<()> {
    output::line(format!("{}, {}, {} activations, {}", r.device, r.driver, r.activations, r.scheme))?;
    output::line(format!(
        "{} tokens decoded after {} of prompt by each session, {} different adapters; tokens/s of all",
        r.output_tokens, r.prompt_tokens, r.adapters
    ))?;
    output::line("sessions      in turn     together        gain")?;
    for row in &r.rows {
        output::line(format!(
            "{:>8} {:>12.1} {:>12.1} {:>10.2}x",
            row.sessions, row.in_turn_tokens_per_second, row.together_tokens_per_second, row.gain
        ))?;
    }
    Ok(())
}

fn chart(r: &SessionsReport) -> String {
    let series = |label: &str, value: fn(&calora::bench::SessionsRow) -> f64| Series {
        label: label.into(),
        points: r.rows.iter().map(|row| (row.sessions as f64, value(row))).collect(),
    };
    let both = [
        series("together", |row| row.together_tokens_per_second),
        series("in turn", |row| row.in_turn_tokens_per_second),
    ];
    let title = format!("Tokens per second of all sessions, {} adapters", r.adapters);
    lines(&title, &format!("sessions, {} on {}", r.scheme, r.device), &both)
}
