//! A model of a phone's size on both devices: the same greedy tokens, load time, memory, speed.
//!
//!     cargo run --release -p calora-models --example random_model -- /tmp/one-b
//!     cargo run --release -p calora-models --example full_size -- /tmp/one-b [tokens]
//!
//! Both devices get the same tokens (the CPU's greedy ones) and must choose the same next one wherever the CPU's margin
//! between first and second exceeds what float32 sums in another order can move.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use calora::engine::{ActivationChoice, BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::session::{GenerationOptions, SessionOptions};

/// Logits of such a model are about 1; float32 sums over 8192 products in another order differ by about 1e-5.
const MARGIN: f32 = 1e-3;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = PathBuf::from(arguments.next().context("usage: full_size MODEL [tokens]")?);
    let count: usize = arguments.next().map_or(Ok(16), |a| a.parse())?;
    let prompt: Vec<u32> = (0..8).map(|i| i * 1009 + 5).collect();
    let mut reference: Option<(Vec<u32>, Vec<f32>)> = None;
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        for activations in [ActivationChoice::F32, ActivationChoice::Int8] {
            let start = Instant::now();
            let options =
                EngineOptions { device, activations, context_size: Some(256), ..EngineOptions::default() };
            let engine = Engine::load(&folder, options)?;
            let load = start.elapsed();
            let adapter = engine.open_adapter(folder.join("task.safetensors"))?;
            let adapters = [(adapter, 1.0)];
            // Held, so that its bytes are there when they are counted.
            let _resident = engine.resident(&adapters)?;
            let (tokens, speed) = generate(&engine, &prompt, &adapters, count)?;
            let memory = engine.memory();
            println!(
                "{:?} {activations:?}: load {:.2} s, {speed:.2} tokens/s with LoRA r16 + recovery r32, weights {} MB, adapter {} MB, process {} MB",
                engine.device_info().kind,
                load.as_secs_f64(),
                memory.weights / 1_000_000,
                memory.tails / 1_000_000,
                resident() / 1_000_000,
            );
            if activations == ActivationChoice::F32 {
                compare(&engine, &prompt, &adapters, tokens, &mut reference)?;
            }
        }
    }
    Ok(())
}

fn generate(
    engine: &Engine,
    prompt: &[u32],
    adapters: &[(BoundAdapter, f32)],
    count: usize,
) -> Result<(Vec<u32>, f64)> {
    let mut session =
        engine.session(SessionOptions { adapters: adapters.to_vec(), ..SessionOptions::default() })?;
    let options = GenerationOptions {
        temperature: Some(0.0),
        max_tokens: Some(count),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    let response = session.respond_to_tokens(prompt, &options)?.collect()?;
    Ok((response.tokens, response.usage.decode_tokens_per_second))
}

/// The first device's tokens and logits are the reference; the second must agree with them.
fn compare(
    engine: &Engine,
    prompt: &[u32],
    adapters: &[(BoundAdapter, f32)],
    tokens: Vec<u32>,
    reference: &mut Option<(Vec<u32>, Vec<f32>)>,
) -> Result<()> {
    let Some((expected, expected_logits)) = reference else {
        let logits = engine.logits(&[prompt, &tokens].concat(), adapters)?;
        *reference = Some((tokens, logits));
        return Ok(());
    };
    let logits = engine.logits(&[prompt, expected].concat(), adapters)?;
    let vocab = engine.model_info().shape.vocab;
    let (mut same, mut close) = (0, 0);
    for (a, e) in logits.chunks(vocab).zip(expected_logits.chunks(vocab)).skip(prompt.len() - 1) {
        let best = |row: &[f32]| (0..vocab).max_by(|x, y| row[*x].total_cmp(&row[*y]));
        let mut sorted = e.to_vec();
        sorted.sort_by(|x, y| y.total_cmp(x));
        let margin = sorted[0] - sorted[1];
        if best(a) == best(e) {
            same += 1;
        } else {
            ensure!(margin <= MARGIN, "another token although the margin is {margin}");
            close += 1;
        }
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (a, e) in logits.iter().zip(expected_logits.iter()) {
        error += f64::from(a - e).powi(2);
        norm += f64::from(*e).powi(2);
    }
    println!(
        "against the CPU: {same} tokens the same, {close} within the margin, logits NMSE {:.1e}; greedy text {}",
        error / norm,
        if *expected == tokens { "equal" } else { "differs" }
    );
    Ok(())
}

/// Resident bytes of this process, where the system tells.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) * 1024
}
