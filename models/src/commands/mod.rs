//! One file a command, and the options they share.

#[cfg(feature = "train")]
pub(crate) mod adapt;
pub(crate) mod bench;
mod bench_sessions;
mod bench_swap;
pub(crate) mod compress;
pub(crate) mod demo;
pub(crate) mod devices;
pub(crate) mod eval;
pub(crate) mod inspect;
pub(crate) mod keygen;
pub(crate) mod logits;
#[cfg(feature = "train")]
pub(crate) mod lora;
pub(crate) mod pack;
pub(crate) mod plan;
pub(crate) mod prepare;
pub(crate) mod protect;
pub(crate) mod run;
#[cfg(feature = "train")]
mod train;
#[cfg(not(feature = "train"))]
pub(crate) mod untrained;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use calora::adapter::AdapterOptions;
use calora::engine::{ActivationChoice, BoundAdapter, DeviceChoice, Engine, EngineOptions};
use calora::memory::{MemoryOptions, MemoryPolicy};
use calora_models::keys::{public_key, read_encryption_key};
use clap::ValueEnum;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// A GPU where there is a real one, else the CPU; never software Vulkan.
    Auto,
    /// A GPU; software Vulkan counts.
    Gpu,
    /// The CPU.
    Cpu,
}

/// `--activations`.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum ActivationArg {
    /// Float32: the reference.
    F32,
    /// Int8 where weights are compressed: the fast mode.
    Int8,
    /// Int8 for a compressed model, else float32.
    Auto,
}

/// How a model is loaded.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) device: DeviceArg,
    /// Precision of the activations.
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) activations: ActivationArg,
    /// CPU threads; all cores unless told.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Tokens a session can hold; the model's own limit unless told.
    #[arg(long)]
    pub(crate) context: Option<usize>,
    /// The most memory that all of it may take, `900MB` or `2GiB`; what the system has left unless told.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory: Option<u64>,
    /// Where that is too little, take a smaller context and smaller budgets instead of giving up.
    #[arg(long)]
    pub(crate) shrink: bool,
}

/// Bytes with a unit or without.
pub(crate) fn bytes(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        other => return Err(format!("{other} is no unit; kB, MB, GB, KiB, MiB and GiB are")),
    };
    let number = digits.parse::<u64>().map_err(|e| format!("{digits:?}: {e}"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text} is more than can be counted"))
}

impl LoadArgs {
    /// Loads a model folder.
    pub(crate) fn load(&self, model: &Path) -> Result<Engine> {
        Ok(Engine::load(model, self.options())?)
    }

    /// How it is loaded.
    pub(crate) fn options(&self) -> EngineOptions {
        EngineOptions {
            device: match self.device {
                DeviceArg::Auto => DeviceChoice::Auto,
                DeviceArg::Gpu => DeviceChoice::Gpu,
                DeviceArg::Cpu => DeviceChoice::Cpu,
            },
            activations: match self.activations {
                ActivationArg::F32 => ActivationChoice::F32,
                ActivationArg::Int8 => ActivationChoice::Int8,
                ActivationArg::Auto => ActivationChoice::Auto,
            },
            threads: self.threads,
            context_size: self.context,
            memory: MemoryOptions {
                budget: self.memory,
                policy: if self.shrink { MemoryPolicy::Shrink } else { MemoryPolicy::Refuse },
                sessions: None,
            },
            ..EngineOptions::default()
        }
    }
}

/// Task files or PEFT folders to attach.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AdapterArgs {
    /// A task file or PEFT folder to attach, `FILE` or `FILE=SCALE`; several add up.
    #[arg(long = "adapter", value_name = "T")]
    pub(crate) adapters: Vec<String>,
    /// Opens encrypted adapters.
    #[arg(long, value_name = "KEYFILE")]
    key: Option<PathBuf>,
    /// Attach only what this signer signed: a public key or its file; several are each trusted.
    #[arg(long, value_name = "PUBKEY")]
    trust: Vec<String>,
    /// Attach only what proves, by its canary, that it acts as it should.
    #[arg(long)]
    check: bool,
}

impl AdapterArgs {
    /// Paths with their scales.
    pub(crate) fn parse(&self) -> Result<Vec<(PathBuf, f32)>> {
        let parse = |text: &String| match text.rsplit_once('=') {
            // A path may contain `=`; what exists as it stands is a path.
            Some((path, scale)) if !Path::new(text).exists() => {
                let scale =
                    scale.parse().with_context(|| format!("--adapter {text}: {scale:?} is no scale"))?;
                Ok((PathBuf::from(path), scale))
            }
            _ => Ok((PathBuf::from(text), 1.0)),
        };
        self.adapters.iter().map(parse).collect()
    }

    /// How they are opened.
    pub(crate) fn options(&self) -> Result<AdapterOptions> {
        let trusted = self.trust.iter().map(|text| public_key(text)).collect::<Result<Vec<_>>>()?;
        Ok(AdapterOptions {
            key: self.key.as_deref().map(read_encryption_key).transpose()?,
            trusted_signers: (!trusted.is_empty()).then_some(trusted),
            canary: self.check,
        })
    }

    /// Opens and binds them all.
    pub(crate) fn open(&self, engine: &Engine) -> Result<Vec<(BoundAdapter, f32)>> {
        let options = self.options()?;
        let open = |(path, scale)| Ok((engine.open_adapter_with(path, &options)?, scale));
        self.parse()?.into_iter().map(open).collect()
    }
}
