//! `calora run`: one answer, or an interactive chat that switches tasks.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use calora::engine::{BoundAdapter, Engine};
use calora::session::{GenerationOptions, Session, SessionOptions, Usage};
use rustyline::error::ReadlineError;

use super::{AdapterArgs, LoadArgs};
use crate::output;

/// Generates text; without --prompt an interactive chat in which /task NAME swaps the task.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The model folder.
    model: PathBuf,
    #[command(flatten)]
    adapters: AdapterArgs,
    /// The prompt; without one an interactive chat.
    #[arg(long)]
    prompt: Option<String>,
    /// Take the prompt as it stands, without the chat template.
    #[arg(long)]
    raw: bool,
    /// Instructions put before the conversation.
    #[arg(long)]
    system: Option<String>,
    /// The longest answer, in tokens.
    #[arg(long)]
    max_tokens: Option<usize>,
    /// 0 takes the likeliest token; above 1 flattens.
    #[arg(long)]
    temperature: Option<f32>,
    /// Sample among the K likeliest tokens.
    #[arg(long)]
    top_k: Option<usize>,
    /// Sample among the likeliest tokens that hold this share of probability.
    #[arg(long)]
    top_p: Option<f32>,
    /// Leave out tokens less likely than this share of the likeliest.
    #[arg(long)]
    min_p: Option<f32>,
    /// Above 1 makes tokens that were seen less likely.
    #[arg(long)]
    repetition_penalty: Option<f32>,
    /// A text that ends the answer; may be given several times.
    #[arg(long)]
    stop: Vec<String>,
    /// Makes sampling repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// Print one JSON object instead of streaming.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    load: LoadArgs,
}

impl Args {
    fn options(&self) -> GenerationOptions {
        GenerationOptions {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            ..GenerationOptions::default()
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let engine = args.load.load(&args.model)?;
    let adapters = args.adapters.open(&engine)?;
    let Some(prompt) = &args.prompt else { return chat(args, &engine, adapters) };
    let mut session = session(args, &engine, &adapters)?;
    let options = args.options();
    let stream = if args.raw {
        session.respond_to_tokens(&engine.tokenizer()?.encode(prompt)?, &options)?
    } else {
        session.respond(prompt, &options)?
    };
    if args.json {
        let response = stream.collect()?;
        return output::json(&serde_json::json!({
            "text": response.text, "tokens": response.tokens,
            "finish_reason": format!("{:?}", response.finish_reason), "usage": usage_json(&response.usage)
        }));
    }
    let usage = print_stream(stream)?;
    eprintln!("{}", usage_line(&usage));
    Ok(())
}

fn session(args: &Args, engine: &Engine, adapters: &[(BoundAdapter, f32)]) -> Result<Session> {
    Ok(engine.session(SessionOptions {
        adapters: adapters.to_vec(),
        instructions: args.system.clone(),
        ..SessionOptions::default()
    })?)
}

/// Prints an answer as it arrives; returns its usage.
pub(super) fn print_stream(mut stream: calora::session::ResponseStream<'_>) -> Result<Usage> {
    let mut usage = None;
    while let Some(chunk) = stream.next()? {
        output::piece(&chunk.text)?;
        usage = chunk.usage.or(usage);
    }
    output::line("")?;
    match usage {
        Some(usage) => Ok(usage),
        None => bail!("the stream ended without usage"),
    }
}

/// Usage for people.
pub(super) fn usage_line(usage: &Usage) -> String {
    format!(
        "[{} prompt tokens ({} cached), {} output tokens, first after {:.1} ms, {:.0} tokens/s]",
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.time_to_first_token.as_secs_f64() * 1e3,
        usage.decode_tokens_per_second
    )
}

/// Usage for programs.
fn usage_json(usage: &Usage) -> serde_json::Value {
    serde_json::json!({
        "prompt_tokens": usage.prompt_tokens, "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.output_tokens,
        "time_to_first_token_ms": usage.time_to_first_token.as_secs_f64() * 1e3,
        "prefill_tokens_per_second": usage.prefill_tokens_per_second,
        "decode_tokens_per_second": usage.decode_tokens_per_second
    })
}

const HELP: &str =
    "/task NAME  swap to a task (/task alone: none)    /tasks  list    /stats  last answer    /quit";

/// Lines until /quit or the end of input; every --adapter is a task to swap to.
fn chat(args: &Args, engine: &Engine, adapters: Vec<(BoundAdapter, f32)>) -> Result<()> {
    let tasks: BTreeMap<String, (BoundAdapter, f32)> =
        adapters.into_iter().map(|task| (task.0.name().to_owned(), task)).collect();
    let mut session = session(args, engine, &[])?;
    let mut current = String::from("base");
    let mut last: Option<Usage> = None;
    let mut editor = rustyline::DefaultEditor::new()?;
    eprintln!("{HELP}");
    loop {
        let line = match editor.readline(&format!("{current}> ")) {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        // A history that cannot grow is no reason to end a conversation.
        let _ = editor.add_history_entry(&line);
        let mut words = line.split_whitespace();
        match words.next() {
            None => {}
            Some("/quit") => return Ok(()),
            Some("/tasks") if tasks.is_empty() => eprintln!("no tasks; start with --adapter FILE"),
            Some("/tasks") => tasks.keys().for_each(|name| eprintln!("{name}")),
            Some("/stats") => match &last {
                Some(usage) => eprintln!("{}", usage_line(usage)),
                None => eprintln!("nothing was generated yet"),
            },
            Some("/task") => match words.next() {
                None => {
                    session.switch_to(&[])?;
                    current = "base".into();
                }
                Some(name) => match tasks.get(name) {
                    None => eprintln!("no task {name}; /tasks lists them"),
                    Some(task) => {
                        let start = std::time::Instant::now();
                        session.switch_to(std::slice::from_ref(task))?;
                        eprintln!("swapped in {:.0} us", start.elapsed().as_secs_f64() * 1e6);
                        current = name.into();
                    }
                },
            },
            Some(command) if command.starts_with('/') => eprintln!("{HELP}"),
            Some(_) => match session.respond(&line, &args.options()) {
                Ok(stream) => last = Some(print_stream(stream)?),
                Err(e) => eprintln!("error: {e}"),
            },
        }
    }
}
