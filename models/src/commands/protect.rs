//! `calora protect`: a task file signed, encrypted, with a canary; and the options that `pack` shares.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use calora::adapter::canary::Canary;
use calora::adapter::protect::{Protection, protect, read_task_file};
use calora::adapter::{TaskAdapter, replace_task_file};
use calora::engine::{ActivationChoice, DeviceChoice, Engine, EngineOptions};
use calora_models::keys::{read_encryption_key, read_signing_key};

use crate::output;

/// Tokens of a recorded probe: enough for a task to show, one short pass on a phone.
const PROBE_TOKENS: usize = 24;
/// The probe of a task that names no example.
const PROBE: &str = "The quick brown fox jumps over the lazy dog.";

/// What is done to a task file before it is written.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ProtectArgs {
    /// Sign with this key of `calora keygen --sign`.
    #[arg(long, value_name = "KEYFILE")]
    sign: Option<PathBuf>,
    /// Encrypt with this key of `calora keygen --encrypt`.
    #[arg(long, value_name = "KEYFILE")]
    encrypt: Option<PathBuf>,
    /// Record what the adapter does after TEXT, so that an engine can prove that it acts.
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true)]
    canary: Option<Option<String>>,
}

/// A file that exists is overwritten only on request.
pub(crate) fn refuse_overwriting(out: &Path, force: bool) -> Result<()> {
    if out.exists() && !force {
        bail!("{} exists; name another file or say --force", out.display());
    }
    Ok(())
}

impl ProtectArgs {
    /// Protects a task file in memory and writes it: nothing unencrypted touches the disk. The canary is recorded on
    /// `base`, on the CPU in float32, after its own text, `example`, or a sentence.
    pub(crate) fn write(
        &self,
        task_file: &[u8],
        base: Option<&Path>,
        example: Option<&str>,
        out: &Path,
    ) -> Result<()> {
        let canary = match &self.canary {
            None => None,
            Some(text) => {
                let base = base.context("--canary needs --base, the model to record it on")?;
                Some(record(task_file, out, base, text.as_deref().or(example).unwrap_or(PROBE))?)
            }
        };
        let protection = Protection {
            canary,
            sign: self.sign.as_deref().map(read_signing_key).transpose()?,
            encrypt: self.encrypt.as_deref().map(read_encryption_key).transpose()?,
        };
        replace_task_file(out, &protect(out, task_file, &protection)?)?;
        let size = std::fs::metadata(out)?.len();
        output::line(format!("wrote {} ({})", out.display(), output::bytes(size)))
    }
}

fn record(task_file: &[u8], out: &Path, base: &Path, text: &str) -> Result<Canary> {
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        activations: ActivationChoice::F32,
        ..EngineOptions::default()
    };
    let engine = Engine::load(base, options)?;
    let (adapter, _) = engine.bind_adapter(&TaskAdapter::from_bytes(out, task_file)?)?;
    let mut prompt = engine.tokenizer()?.encode(text)?;
    prompt.truncate(PROBE_TOKENS);
    Ok(engine.record_canary(&adapter, &prompt)?)
}

/// Signs, encrypts or proves a task file, and undoes encryption; its tensors stay as they are.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The task file, encrypted or not.
    task: PathBuf,
    /// The file to write.
    #[arg(long)]
    out: PathBuf,
    /// Opens an encrypted task file.
    #[arg(long, value_name = "KEYFILE")]
    key: Option<PathBuf>,
    /// The model that the task is for; only --canary needs it.
    #[arg(long)]
    base: Option<PathBuf>,
    #[command(flatten)]
    protect: ProtectArgs,
    /// Overwrite an existing file.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    refuse_overwriting(&args.out, args.force)?;
    if args.task.is_dir() {
        bail!("{} is a folder; `calora pack` makes a task file of it", args.task.display());
    }
    let key = args.key.as_deref().map(read_encryption_key).transpose()?;
    let task_file = read_task_file(&args.task, key.as_ref())?;
    // Refuses what is no task file at all.
    TaskAdapter::from_bytes(&args.task, task_file.bytes())?;
    args.protect.write(task_file.bytes(), args.base.as_deref(), None, &args.out)
}
