//! The command-line program `calora`.
//!
//! A contract that tests and scripts rely on: `--json` prints one JSON object on stdout, progress and errors go to
//! stderr, a failure exits with a non-zero code and says what to do.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod commands;
mod output;

use clap::{Parser, Subcommand};

#[cfg(feature = "train")]
use commands::{adapt, lora};
use commands::{
    bench, compress, demo, devices, eval, inspect, keygen, logits, pack, plan, prepare, protect, run,
};
#[cfg(not(feature = "train"))]
use commands::{untrained as adapt, untrained as lora};

/// One compressed LLM, many tasks: each a small file, swapped in an instant.
#[derive(Parser)]
#[command(name = "calora", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The main job on the shipped model: compress, attach tasks, swap, stream.
    Demo(demo::Args),
    /// Generate text; without --prompt an interactive chat.
    Run(run::Args),
    /// Compress a Hugging Face model folder to int8 or int4.
    Compress(compress::Args),
    /// Turn labelled data into rows to train and evaluate on.
    Prepare(prepare::Args),
    /// Train a LoRA on a model, compressed or not, into a PEFT folder.
    Lora(lora::Args),
    /// Repair a task on a compressed model: LoRA, recovery, distillation (CA-LoRA).
    Adapt(Box<adapt::Args>),
    /// Turn PEFT LoRA folders into one task file, without training.
    Pack(pack::Args),
    /// Sign, encrypt or prove a task file.
    Protect(protect::Args),
    /// New keys to sign and encrypt adapters with.
    Keygen(keygen::Args),
    /// Accuracy, perplexity or exact match on a file of rows.
    Eval(eval::Args),
    /// Logits of given token ids, for parity checks.
    Logits(logits::Args),
    /// What a model, adapter or task file holds.
    Inspect(inspect::Args),
    /// How much memory a model is going to take here, and whether it fits.
    Plan(plan::Args),
    /// Speed, memory, cost of adapters and of swapping them.
    Bench(bench::Args),
    /// The GPUs found, their limits and features, and why one is unusable.
    Devices(devices::Args),
}

fn main() -> std::process::ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().filter_or("CALORA_LOG", "error")).init();
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Compress(args) => compress::run(&args),
        Command::Lora(args) => lora::run(&args),
        Command::Adapt(args) => adapt::run(&args),
        Command::Prepare(args) => prepare::run(&args),
        Command::Pack(args) => pack::run(&args),
        Command::Protect(args) => protect::run(&args),
        Command::Keygen(args) => keygen::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Devices(args) => devices::run(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        // A reader that closed the pipe (`| head`) is not an error worth a message.
        Err(error) if output::is_broken_pipe(&error) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
