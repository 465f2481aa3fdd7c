//! From a model folder to an engine: which device, which activations, which files.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

use super::{Engine, EngineParts, device, plan};
use crate::arch;
use crate::device::{LoadProgress, Model, Weights};
use crate::error::{Error, Result};
use crate::memory::{MemoryOptions, MemoryPlan, MemoryPolicy};
use crate::text::{Tokenizer, TokenizerConfig};
use crate::weights::{ModelFolder, Storage, WeightAccess};

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The GPU where there is a real one, else the CPU; never a software GPU.
    #[default]
    Auto,
    /// A GPU, even a software one.
    Gpu,
    /// The CPU.
    Cpu,
}

/// Precision of the activations that meet compressed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationChoice {
    /// Int8 where weights are compressed, else float32.
    #[default]
    Auto,
    /// Float32: the reference mode.
    F32,
    /// Int8: the fast mode.
    Int8,
}

/// How a model folder is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Which device.
    pub device: DeviceChoice,
    /// Whether the CPU computes where the GPU is refused or lost for good; by default only with [`DeviceChoice::Auto`].
    pub fallback_to_cpu: Option<bool>,
    /// Which precision.
    pub activations: ActivationChoice,
    /// Positions of a session's cache; by default the model's, at most [`super::DEFAULT_CONTEXT`].
    pub context_size: Option<usize>,
    /// Threads of the CPU device; by default one a core.
    pub threads: Option<usize>,
    /// Tokens of one prefill pass; by default [`super::DEFAULT_PREFILL_CHUNK`].
    pub prefill_chunk: Option<usize>,
    /// Bytes of adapters that stay resident after their last use, the least recently used going first; by default 64 MiB.
    /// On a CPU, memory for one more is fetched ahead of its use, within the budget ([`Engine::ready_bytes`]).
    pub adapter_budget: Option<u64>,
    /// Bytes of ordinary memory for beginnings of conversations that were computed before: instructions, and what
    /// [`CachePolicy::Restore`](crate::session::CachePolicy::Restore) puts aside. By default 32 MiB; 0 for none.
    pub prefix_budget: Option<u64>,
    /// A folder in which the beginnings that instructions make, and what routers measured of their examples, outlive the
    /// process, within the same budget. Its files belong to this model, device and driver; the folder may be emptied at any
    /// time. By default none.
    pub prefix_folder: Option<PathBuf>,
    /// A folder in which facts of the GPU outlive the process: with it, each kernel is tried before its first use, what
    /// computes wrongly on the user's driver is not used, equal ones are timed on hardware, and compiled pipelines are
    /// kept. Its files belong to one GPU, driver and version; the folder may be emptied at any time, and nobody but the
    /// app may be able to write there. By default none: then the capabilities alone choose kernels. The CPU needs none.
    pub device_folder: Option<PathBuf>,
    /// Whether base weights are computed on in their mapped files or copied first.
    pub weights: WeightAccess,
    /// How much memory all of it may take, and what is done where that is not enough.
    pub memory: MemoryOptions,
}

impl EngineOptions {
    pub(super) fn falls_back(&self) -> bool {
        self.fallback_to_cpu.unwrap_or(self.device == DeviceChoice::Auto)
    }
}

/// What is known of a model folder before it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loadable {
    /// Bytes of all weights in their files.
    pub weight_bytes: u64,
    /// What it would take, and on which device.
    pub plan: MemoryPlan,
}

/// A model folder, opened: headers read, tensors mapped.
pub(super) struct Opened {
    pub(super) files: ModelFolder,
    pub(super) model: Model,
    tokenizer_config: TokenizerConfig,
    tokenizer: Option<Tokenizer>,
}

pub(super) fn open(folder: &Path, access: WeightAccess) -> Result<Opened> {
    let files = ModelFolder::open(folder)?.with_access(access)?;
    let recipe = arch::recipe(files.config(), files.config_path())?;
    let weights = files.weights(&recipe)?;
    let model = Model { recipe: Arc::new(recipe), weights: Arc::new(weights) };
    let tokenizer_config = TokenizerConfig::load(folder)?;
    let tokenizer = match folder.join("tokenizer.json").exists() {
        true => Some(Tokenizer::load(folder, &tokenizer_config)?),
        false => None,
    };
    Ok(Opened { files, model, tokenizer_config, tokenizer })
}

impl Opened {
    /// The same with its weights as [`WeightAccess`] says.
    fn with_access(self, access: WeightAccess) -> Result<Self> {
        if access == WeightAccess::Mapped {
            return Ok(self);
        }
        let files = self.files.with_access(access)?;
        let weights = Arc::new(files.weights(&self.model.recipe)?);
        Ok(Self { model: Model { weights, ..self.model }, files, ..self })
    }
}

impl Engine {
    /// Loads a Hugging Face folder, compressed or not, onto a device.
    ///
    /// The weights stay in their mapped files unless [`EngineOptions::weights`] says otherwise: the CPU computes on the map, a GPU gets one copy. A folder without
    /// `tokenizer.json` loads too; then only token ids go in and out.
    pub fn load(folder: impl AsRef<Path>, options: EngineOptions) -> Result<Self> {
        Self::load_with_progress(folder, options, |_| ControlFlow::Continue(()))
    }

    /// [`Engine::load`], told of as it goes; a `Break` ends it with [`Error::Cancelled`].
    pub fn load_with_progress(
        folder: impl AsRef<Path>,
        options: EngineOptions,
        mut progress: impl FnMut(LoadProgress) -> ControlFlow<()>,
    ) -> Result<Self> {
        let start = Instant::now();
        let folder = folder.as_ref();
        // Planned on the map: what does not fit is not copied either.
        let opened = open(folder, WeightAccess::Mapped)?;
        let plan = plan::settle(&opened, &options)?;
        let options = plan::options(&plan, options);
        let opened = opened.with_access(options.weights)?;
        let total_bytes = opened.model.weights.byte_len();
        let mut report = |loaded_bytes| match progress(LoadProgress { loaded_bytes, total_bytes }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Cancelled),
        };
        report(0)?;
        let (device, recovery) = device::open(&opened.model, &options, &mut report)?;
        report(total_bytes)?;
        if options.memory.policy == MemoryPolicy::Shrink {
            log::info!("memory: {plan}");
        }
        let files = opened.files;
        let mut engine = Self::from_parts(EngineParts {
            scheme: scheme(&opened.model.weights),
            model: opened.model,
            device,
            recovery: Some(recovery),
            folder: folder.to_owned(),
            tokenizer: opened.tokenizer,
            tokenizer_config: opened.tokenizer_config,
            config: files.config().clone(),
            generation_config: files.generation_config().cloned().unwrap_or(Value::Null),
            context_size: options.context_size,
            prefill_chunk: options.prefill_chunk,
            adapter_budget: options.adapter_budget,
            prefix_budget: options.prefix_budget,
            prefix_folder: options.prefix_folder,
            files: Some(files),
        })?;
        engine.plan = Some(Arc::new(plan));
        engine.load_time = start.elapsed();
        Ok(engine)
    }

    /// Whether a folder can be loaded with these options, as far as its headers, this machine's devices and its memory
    /// tell.
    pub fn check(folder: impl AsRef<Path>, options: &EngineOptions) -> Result<Loadable> {
        let opened = open(folder.as_ref(), WeightAccess::Mapped)?;
        Ok(Loadable { weight_bytes: opened.model.weights.byte_len(), plan: plan::settle(&opened, options)? })
    }
}

/// The scheme that holds most of the weights, for people.
fn scheme(weights: &Weights) -> String {
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    for matrix in &weights.matrices {
        let name = match &matrix.storage {
            Storage::Dense(tensor) => format!("{:?}", tensor.dtype).to_lowercase(),
            Storage::Packed { scheme, .. } => scheme.to_string(),
        };
        *sizes.entry(name).or_default() += matrix.rows * matrix.cols;
    }
    sizes.into_iter().max_by_key(|(_, size)| *size).map_or_else(String::new, |(name, _)| name)
}
