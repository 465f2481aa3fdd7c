//! What several sessions gain by sharing passes: decoding together against decoding in turn, token by token.
//!
//! Both ways are measured in turn within one run and compared pair by pair: a machine that slows down slows both.

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::median;
use crate::adapter::AdapterOptions;
use crate::engine::{BoundAdapter, Engine};
use crate::error::{Error, Result};
use crate::session::{Generation, GenerationOptions, Session, SessionOptions, pass_together};

/// What is measured.
#[derive(Clone, Debug)]
pub struct SessionsBench {
    /// Adapters with their scales, one for each session and over again where there are more sessions; none for the base
    /// model alone.
    pub adapters: Vec<(PathBuf, f32)>,
    /// How they are opened.
    pub open: AdapterOptions,
    /// The most sessions at once; fewer are measured too: one, two, four and so on.
    pub sessions: usize,
    /// Tokens of each session's prompt.
    pub prompt_tokens: usize,
    /// Tokens that each session decodes.
    pub output_tokens: usize,
    /// Runs; medians are reported.
    pub runs: usize,
}

/// What was measured; as JSON, a contract.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SessionsReport {
    /// Kind and name.
    pub device: String,
    /// Driver, backend, instruction sets.
    pub driver: String,
    /// `f32` or `int8`.
    pub activations: String,
    /// How the weights are stored.
    pub scheme: String,
    /// Different adapters among the sessions.
    pub adapters: usize,
    /// Tokens of each session's prompt.
    pub prompt_tokens: usize,
    /// Tokens that each session decoded.
    pub output_tokens: usize,
    /// Runs that the medians are of.
    pub runs: usize,
    /// One for each number of sessions.
    pub rows: Vec<SessionsRow>,
}

/// So many sessions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SessionsRow {
    /// How many.
    pub sessions: usize,
    /// Tokens per second of all of them, a pass a token.
    pub in_turn_tokens_per_second: f64,
    /// Tokens per second of all of them, a pass a token of each.
    pub together_tokens_per_second: f64,
    /// Time in turn / time together, the median of the pairs.
    pub gain: f64,
}

/// Measures; `tick` is called after each number of sessions.
pub fn measure_sessions(
    engine: &Engine,
    bench: &SessionsBench,
    tick: &mut dyn FnMut(),
) -> Result<SessionsReport> {
    let least = [bench.sessions, bench.prompt_tokens, bench.output_tokens, bench.runs].into_iter().min();
    if least == Some(0) {
        let reason = "needs at least one session, one token of each kind and one run";
        return Err(Error::option("sessions benchmark", format!("{bench:?}"), reason));
    }
    let open = |(path, scale): &(PathBuf, f32)| Ok((engine.open_adapter_with(path, &bench.open)?, *scale));
    let adapters = bench.adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for sessions in bench.counts() {
        let (mut in_turn, mut together, mut gain) = (Vec::new(), Vec::new(), Vec::new());
        // The first round warms up.
        for round in 0..=bench.runs {
            let pair = [false, true].map(|shared| decode(engine, bench, &adapters, sessions, shared));
            let [alone, shared] = pair;
            let (alone, shared) = (alone?, shared?);
            if round > 0 {
                in_turn.push(alone);
                together.push(shared);
                gain.push(shared / alone);
            }
        }
        rows.push(SessionsRow {
            sessions,
            in_turn_tokens_per_second: median(in_turn),
            together_tokens_per_second: median(together),
            gain: median(gain),
        });
        tick();
    }
    let device = engine.device_info();
    Ok(SessionsReport {
        device: format!("{} {}", device.kind, device.name),
        driver: device.detail.clone(),
        activations: format!("{:?}", device.activations).to_lowercase(),
        scheme: engine.model_info().scheme.clone(),
        adapters: adapters.len().min(bench.sessions),
        prompt_tokens: bench.prompt_tokens,
        output_tokens: bench.output_tokens,
        runs: bench.runs,
        rows,
    })
}

impl SessionsBench {
    /// How many sessions are measured at once, each time.
    pub fn counts(&self) -> Vec<usize> {
        let powers = (0..usize::BITS).map(|i| 1 << i).take_while(|n| *n < self.sessions);
        powers.chain([self.sessions]).collect()
    }
}

/// Tokens per second of so many sessions, prompts left out.
fn decode(
    engine: &Engine,
    bench: &SessionsBench,
    adapters: &[(BoundAdapter, f32)],
    sessions: usize,
    together: bool,
) -> Result<f64> {
    let vocab = engine.model_info().shape.vocab as u64;
    let options = GenerationOptions {
        temperature: Some(0.0),
        // The prompt's last pass gives the first.
        max_tokens: Some(bench.output_tokens + 1),
        repetition_penalty: Some(1.0),
        ignore_end_of_turn: true,
        ..GenerationOptions::default()
    };
    let mut all: Vec<(Generation, Session)> = (0..sessions)
        .map(|i| {
            let mut session = engine.session(SessionOptions {
                adapters: adapters.iter().cycle().skip(i).take(1).cloned().collect(),
                context_size: Some(bench.prompt_tokens + bench.output_tokens + 1),
                ..SessionOptions::default()
            })?;
            let token = |t: usize| ((t * sessions + i) as u64 * 7919 % vocab) as u32;
            let prompt: Vec<u32> = (0..bench.prompt_tokens).map(token).collect();
            let mut generation = session.begin_tokens(&prompt, &options)?;
            while !generation.is_decoding() && !generation.is_over() {
                generation.pass(&mut session)?;
            }
            Ok((generation, session))
        })
        .collect::<Result<_>>()?;
    let start = Instant::now();
    while all.iter().any(|(generation, _)| !generation.is_over()) {
        if together {
            let mut members: Vec<_> = all.iter_mut().map(|(g, session)| (g, session)).collect();
            for result in pass_together(&mut members).into_iter().flatten() {
                result?;
            }
        } else {
            for (generation, session) in &mut all {
                generation.pass(session)?;
            }
        }
    }
    Ok((sessions * bench.output_tokens) as f64 / start.elapsed().as_secs_f64())
}
