//! What `calora lora` and `calora adapt` share: options, progress, results.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calora_models::train::device::{self, DeviceChoice};
use calora_models::train::options::{Schedule, TrainOptions};
use calora_models::train::report::Report;
use calora_models::train::run::Event;
use clap::ValueEnum;
use indicatif::ProgressBar;

use super::DeviceArg;
use crate::output;

/// `--schedule`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    /// Half a cosine, to zero.
    Cosine,
    /// A straight line, to zero.
    Linear,
    /// It stays.
    Constant,
}

/// How to train.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TrainArgs {
    /// Training rows: {prompt, completion}, {prompt, choices, label} or {text}, one JSON object a line.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Rows that are not trained on; the state that is best on them is kept.
    #[arg(long)]
    pub(crate) heldout: Option<PathBuf>,
    /// Only the first N of them.
    #[arg(long, value_name = "N")]
    pub(crate) heldout_limit: Option<usize>,
    /// Rows in a batch.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Batches whose gradients make one step.
    #[arg(long, default_value_t = 1)]
    accumulate: usize,
    /// Steps over which the learning rate rises.
    #[arg(long, default_value_t = 10)]
    warmup: usize,
    /// What the learning rate does after that.
    #[arg(long, value_enum, default_value = "cosine")]
    schedule: ScheduleArg,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0)]
    weight_decay: f32,
    /// The largest norm of the gradients over all parameters; 0 for no limit.
    #[arg(long, default_value_t = 1.0)]
    clip: f64,
    /// Seed of fresh branches and of the order of rows.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The longest row in tokens; longer texts are cut, longer rows of other kinds are left out.
    #[arg(long, default_value_t = 256)]
    max_length: usize,
    /// Steps between evaluations; 0 for only at the end.
    #[arg(long, default_value_t = 50)]
    eval_every: usize,
    /// Steps between checkpoints; 0 for none.
    #[arg(long, default_value_t = 100)]
    checkpoint_every: usize,
    /// Megabytes for dequantized weights and activations; what does not fit is computed again, which is slower.
    #[arg(long, default_value_t = 4096, value_name = "MB")]
    memory: u64,
    /// Folder of checkpoints, log.jsonl and loss.svg; OUT.run unless told. The same command goes on from the last
    /// checkpoint.
    #[arg(long)]
    run: Option<PathBuf>,
    /// Where to compute; gpu needs a build with the feature train-gpu or train-cuda.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceArg,
    /// CPU threads; all cores unless told.
    #[arg(long)]
    threads: Option<usize>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

impl TrainArgs {
    /// The library's options.
    pub(crate) fn options(&self, steps: usize, learning_rate: f64) -> TrainOptions {
        TrainOptions {
            steps,
            batch: self.batch,
            accumulate: self.accumulate,
            learning_rate,
            warmup: self.warmup,
            schedule: match self.schedule {
                ScheduleArg::Cosine => Schedule::Cosine,
                ScheduleArg::Linear => Schedule::Linear,
                ScheduleArg::Constant => Schedule::Constant,
            },
            weight_decay: self.weight_decay,
            clip: self.clip,
            seed: self.seed,
            max_length: self.max_length,
            eval_every: self.eval_every,
            checkpoint_every: self.checkpoint_every,
            memory: self.memory << 20,
        }
    }

    /// Where it computes; also sets the threads.
    pub(crate) fn device(&self) -> Result<DeviceChoice> {
        device::set_threads(self.threads)?;
        Ok(match self.device {
            DeviceArg::Auto => DeviceChoice::Auto,
            DeviceArg::Cpu => DeviceChoice::Cpu,
            DeviceArg::Gpu => DeviceChoice::Gpu,
        })
    }

    /// The run's folder.
    pub(crate) fn run_folder(&self, out: &Path) -> PathBuf {
        let beside = || {
            let mut name = out.as_os_str().to_owned();
            name.push(".run");
            PathBuf::from(name)
        };
        self.run.clone().unwrap_or_else(beside)
    }
}

/// Shows events as a bar, and the important ones as lines.
pub(crate) struct Progress {
    bar: ProgressBar,
    steps: u64,
}

impl Progress {
    pub(crate) fn new(steps: usize) -> Self {
        Self { bar: output::progress(steps as u64, "train"), steps: steps as u64 }
    }

    pub(crate) fn show(&mut self, event: Event) {
        match event {
            Event::Teacher(done, all) => self.count("teacher", done, all),
            Event::Calibration(done, all) => self.count("calibrate", done, all),
            Event::Resumed(step) => self.say(format!("goes on from step {step}")),
            Event::Start(score) => self.say(format!("before training: {}", describe(&score))),
            Event::Step { step, loss, speed } => {
                self.bar.set_length(self.steps);
                self.bar.set_prefix("train");
                self.bar.set_position(step as u64);
                self.bar.set_message(format!("loss {loss:.4}, {speed:.0} tokens/s"));
            }
            Event::Evaluated { step, loss, best } => {
                let mark = if best { ", the best so far" } else { "" };
                self.say(format!("step {step}: held-out loss {loss:.4}{mark}"));
            }
        }
    }

    fn count(&self, what: &str, done: usize, all: usize) {
        self.bar.set_prefix(what.to_owned());
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
    }

    /// A line on stderr that also shows where there is no terminal.
    fn say(&self, text: String) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn describe(score: &calora_models::train::evaluate::Score) -> String {
    let accuracy = score.accuracy.map(|a| format!(", accuracy {:.1} %", 100.0 * a)).unwrap_or_default();
    format!("held-out loss {:.4}{accuracy}", score.loss)
}

/// Prints a report.
pub(crate) fn print(report: &Report, json: bool, out: &Path) -> Result<()> {
    if json {
        return output::json(report);
    }
    if let Some(heldout) = &report.heldout {
        output::line(format!("before training      {}", describe(&heldout.start)))?;
        output::line(format!("best, step {:<9} {}", heldout.best.step, describe(&heldout.best.score)))?;
    }
    if report.left_out > 0 {
        output::line(format!("{} rows are longer than --max-length and were left out", report.left_out))?;
    }
    let memory =
        report.peak_memory.map(|m| format!(", peak memory {}", output::bytes(m))).unwrap_or_default();
    output::line(format!(
        "{} parameters, {} steps, {:.1} s, {:.0} tokens/s{memory}",
        report.trainable_parameters, report.steps, report.seconds, report.tokens_per_second
    ))?;
    output::line(format!("wrote {} ({})", out.display(), output::bytes(report.bytes)))
}
