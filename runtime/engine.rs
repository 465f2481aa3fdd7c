//! The engine: base weights on a device, shared by any number of sessions and task adapters.
//!
//! A cheap handle: clones share everything. It puts parts together and owns no algorithm; [`load`] makes the parts from a
//! model folder, [`crate::session`] runs conversations.

mod canary;
mod device;
pub mod load;
mod plan;
mod survive;
mod trim;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde_json::Value;

pub use load::{ActivationChoice, DeviceChoice, EngineOptions, Loadable};

use crate::adapter::{AdapterOptions, BoundTail, Coverage, Tail, TaskAdapter};
use crate::arch::{ModelShape, Recipe};
pub use crate::device::LoadProgress;
use crate::device::{Device, DeviceInfo, DeviceMemory, Model, position_bytes};
use crate::error::{Error, Result};
use crate::memory::MemoryPlan;
pub use crate::session::{
    BoundAdapter, EngineEvent, MakeDevice, Recovery, ResidencyReport, ResidentAdapter, ResidentList,
};
use crate::session::{
    GenerationOptions, Session, SessionOptions, TaskDefaults,
    events::Events,
    prefix_files::PrefixFiles,
    prefixes::{self, Prefixes},
    residency::{DEFAULT_BUDGET, Residency},
    seat::Seat,
    shared::{Counters, Shared},
    slot::Slots,
    stop::end_of_turn_ids,
};
use crate::text::{Tokenizer, TokenizerConfig};
pub use crate::weights::WeightAccess;
use crate::weights::{BaseIds, ModelFolder, PrivateBytes, room};

/// Positions of a session's cache unless asked otherwise: a model made for 131,072 would fill a phone with one cache.
pub const DEFAULT_CONTEXT: usize = 4096;

/// Tokens of one prefill pass unless asked otherwise: large enough for matrix kernels, short enough to cancel.
pub const DEFAULT_PREFILL_CHUNK: usize = 256;

/// What an engine is made of.
pub struct EngineParts {
    /// Recipe and weights.
    pub model: Model,
    /// What holds and runs them.
    pub device: Box<dyn Device>,
    /// How the device is made again when it is lost; without it every later request fails then.
    pub recovery: Option<Recovery>,
    /// The model's folder, for errors.
    pub folder: PathBuf,
    /// The opened folder, asked for the model's ids when an adapter is bound to one; none for generated weights.
    pub files: Option<ModelFolder>,
    /// How the weights are stored, for people: `int4 g32`, `bf16`.
    pub scheme: String,
    /// Absent where the folder has no tokenizer: then only token ids go in and out.
    pub tokenizer: Option<Tokenizer>,
    /// Special tokens and the chat template.
    pub tokenizer_config: TokenizerConfig,
    /// `config.json`.
    pub config: Value,
    /// `generation_config.json`, or null.
    pub generation_config: Value,
    /// Positions of a session's cache; by default the model's, at most [`DEFAULT_CONTEXT`].
    pub context_size: Option<usize>,
    /// Tokens of one prefill pass; by default [`DEFAULT_PREFILL_CHUNK`], never more than the device takes.
    pub prefill_chunk: Option<usize>,
    /// Bytes of adapters that stay resident after their last use; by default 64 MiB.
    pub adapter_budget: Option<u64>,
    /// Bytes of put-aside beginnings of conversations; by default 32 MiB, 0 for none.
    pub prefix_budget: Option<u64>,
    /// Where instructions' beginnings outlive the process; by default nowhere.
    pub prefix_folder: Option<PathBuf>,
}

/// What an engine has computed since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Computed {
    /// Passes of the device.
    pub passes: u64,
    /// Tokens in them.
    pub tokens: u64,
}

/// What a loaded model is.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Its folder.
    pub folder: PathBuf,
    /// `model_type` of the configuration.
    pub architecture: String,
    /// Dimensions.
    pub shape: ModelShape,
    /// How the weights are stored, for people.
    pub scheme: String,
    /// Positions of a session's cache.
    pub context_size: usize,
    /// Whether text can go in and out.
    pub has_tokenizer: bool,
    /// Whether prompts are messages of a conversation.
    pub has_chat_template: bool,
    /// Tokens that end a turn.
    pub end_of_turn: Vec<u32>,
}

/// Base weights on a device. Cloning gives another handle to the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    residency: Arc<Residency>,
    info: Arc<ModelInfo>,
    files: Arc<Option<ModelFolder>>,
    /// Decrypted adapters that were bound to this engine.
    decrypted: Arc<Mutex<Vec<Weak<PrivateBytes>>>>,
    /// None where the engine was made of parts.
    plan: Option<Arc<MemoryPlan>>,
    load_time: Duration,
}

impl Engine {
    /// An engine from parts; [`Engine::load`] makes them from a folder.
    pub fn from_parts(parts: EngineParts) -> Result<Self> {
        let shape = &parts.model.recipe.shape;
        let context_size = plan::context_size(shape, parts.context_size)?;
        let max_tokens = parts.device.info().max_tokens;
        let prefill_chunk = parts.prefill_chunk.unwrap_or(DEFAULT_PREFILL_CHUNK).min(max_tokens);
        if prefill_chunk == 0 {
            return Err(Error::option("prefill_chunk", 0, "must be at least 1"));
        }
        let eos = parts.tokenizer.as_ref().and_then(Tokenizer::eos);
        let end_of_turn = end_of_turn_ids(&parts.generation_config, &parts.config, eos);
        let info = ModelInfo {
            folder: parts.folder.clone(),
            architecture: parts.model.recipe.architecture.clone(),
            shape: shape.clone(),
            scheme: parts.scheme,
            context_size,
            has_tokenizer: parts.tokenizer.is_some(),
            has_chat_template: parts.tokenizer_config.chat_template.is_some(),
            end_of_turn: end_of_turn.clone(),
        };
        let position_bytes = position_bytes(shape, parts.device.info().activations);
        let prefix_budget = parts.prefix_budget.unwrap_or(prefixes::DEFAULT_BUDGET);
        let prefix_files = match (parts.prefix_folder, &parts.files) {
            (Some(folder), Some(files)) => {
                let model = format!("{:?}", files.ids()?);
                Some(PrefixFiles::new(folder, model, position_bytes, prefix_budget))
            }
            (Some(folder), None) => {
                let reason = "needs a model folder, whose id names the files";
                return Err(Error::option("prefix_folder", folder.display(), reason));
            }
            (None, _) => None,
        };
        let seat = Seat::new(parts.device, parts.recovery, prefill_chunk);
        let shared = Shared {
            model: parts.model,
            info: Mutex::new(seat.info().clone()),
            epoch: AtomicU64::new(seat.epoch()),
            seat: Mutex::new(seat),
            events: Events::default(),
            folder: parts.folder,
            tokenizer: parts.tokenizer.map(Arc::new),
            tokenizer_config: parts.tokenizer_config,
            end_of_turn,
            defaults: GenerationOptions::from_generation_config(&parts.generation_config),
            context_size,
            prefill_chunk,
            counters: Counters::default(),
            position_bytes,
            prefixes: Prefixes::new(prefix_budget, prefix_files),
            slots: Slots::default(),
        };
        let (shared, files) = (Arc::new(shared), Arc::new(parts.files));
        let residency = Residency::new(shared.clone(), parts.adapter_budget.unwrap_or(DEFAULT_BUDGET));
        Ok(Self {
            shared,
            residency: Arc::new(residency),
            info: Arc::new(info),
            files,
            decrypted: Arc::default(),
            plan: None,
            load_time: Duration::ZERO,
        })
    }

    /// A new conversation with a KV cache of its own.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.residency.clone(), options)
    }

    /// Names branches that were bound to this engine's recipe; shapes are checked when they become resident.
    pub fn adapter(&self, name: impl Into<String>, tail: Tail) -> BoundAdapter {
        BoundAdapter::new(name.into(), BoundTail::Made(tail), TaskDefaults::default(), None)
    }

    /// Opens a task file or PEFT folder and binds it to this model: headers are read, tensors stay in the file.
    ///
    /// Refuses an adapter of another base, one that touches nothing, and whatever would change its meaning.
    pub fn open_adapter(&self, path: impl AsRef<Path>) -> Result<BoundAdapter> {
        self.open_adapter_with(path, &AdapterOptions::default())
    }

    /// [`Self::open_adapter`] of an encrypted adapter, or with questions about it: its signer, its canary.
    ///
    /// [`Error::Locked`], [`Error::Untrusted`] and [`Error::CanaryFailed`] are the answers that refuse it.
    pub fn open_adapter_with(
        &self,
        path: impl AsRef<Path>,
        options: &AdapterOptions,
    ) -> Result<BoundAdapter> {
        let (bound, _) = self.bind_adapter(&TaskAdapter::open_with(path, options)?)?;
        self.prove(&bound, options)?;
        Ok(bound)
    }

    /// What an adapter touches in this model.
    pub fn coverage(&self, adapter: &TaskAdapter) -> Result<Coverage> {
        Ok(adapter.bind(self.recipe(), &self.ids_for(adapter)?)?.1)
    }

    /// Binds an opened adapter to this model, with a report of what it touches.
    pub fn bind_adapter(&self, adapter: &TaskAdapter) -> Result<(BoundAdapter, Coverage)> {
        let (_, coverage) = adapter.bind(self.recipe(), &self.ids_for(adapter)?)?;
        if coverage.does_nothing() {
            log::warn!("adapter {} fits but does nothing: all its branches are zero", adapter.info().name);
        }
        Ok((self.name_tail(adapter)?, coverage))
    }

    /// [`Engine::bind_adapter`] without the report: nothing of the adapter's tensors is read.
    pub fn fit_adapter(&self, adapter: &TaskAdapter) -> Result<BoundAdapter> {
        adapter.fit(self.recipe(), &self.ids_for(adapter)?)?;
        self.name_tail(adapter)
    }

    fn name_tail(&self, adapter: &TaskAdapter) -> Result<BoundAdapter> {
        let info = adapter.info();
        let task = TaskDefaults::read(info)?;
        if let Some(private) = adapter.private() {
            let mut decrypted = self.decrypted.lock().unwrap_or_else(PoisonError::into_inner);
            decrypted.retain(|known| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(private));
            decrypted.push(Arc::downgrade(private));
        }
        let tail = adapter.packed(self.recipe());
        Ok(BoundAdapter::new(info.name.clone(), tail, task, info.canary.clone()))
    }

    fn ids_for(&self, adapter: &TaskAdapter) -> Result<BaseIds> {
        // Only an adapter that names its base makes a foreign folder compute its ids, which reads all its weights.
        if adapter.info().base.is_some() { self.ids() } else { Ok(BaseIds::default()) }
    }

    /// The content ids that adapters are bound to: recorded in the folder, or computed from its weights and kept there.
    pub fn ids(&self) -> Result<BaseIds> {
        self.files.as_ref().as_ref().map_or_else(|| Ok(BaseIds::default()), ModelFolder::ids)
    }

    /// Makes adapters resident ahead of time and keeps them so while the result lives: switching a session to the same
    /// list then moves no bytes. `None` for an empty list.
    pub fn resident(&self, adapters: &[(BoundAdapter, f32)]) -> Result<Option<ResidentAdapter>> {
        self.residency.get(adapters)
    }

    /// What is on the device, who holds it, and how full the budget is.
    pub fn residency(&self) -> ResidencyReport {
        self.residency.report()
    }

    /// Bytes of memory that lie ready for the next adapter: on a CPU, a response after which one more like the last would fit
    /// the budget fetches them, so that its first use need not. Any engine of the process may use them.
    pub fn ready_bytes(&self) -> u64 {
        room::bytes()
    }

    /// Lets go of an adapter that is resident but not in use, before the budget would.
    pub fn evict(&self, adapter: &BoundAdapter) {
        self.residency.evict(adapter);
    }

    /// Lets go of all adapters that are not in use; how many lists of adapters left the device.
    pub fn evict_idle(&self) -> usize {
        self.residency.evict_idle()
    }

    /// Bytes of put-aside beginnings of conversations, in ordinary memory.
    pub fn prefix_bytes(&self) -> u64 {
        self.shared.prefixes.bytes()
    }

    /// Forgets put-aside beginnings, files excepted; how many bytes that freed. What is needed again is computed again.
    pub fn forget_prefixes(&self) -> u64 {
        self.shared.prefixes.clear()
    }

    /// (ids, vocabulary) logits after every id, row-major, computed in a cache of its own.
    pub fn logits(&self, ids: &[u32], adapters: &[(BoundAdapter, f32)]) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let longest = self.info.shape.context;
        if ids.len() > longest {
            return Err(Error::ContextFull { needed: ids.len(), available: longest });
        }
        let options = SessionOptions {
            adapters: adapters.to_vec(),
            context_size: Some(ids.len()),
            ..SessionOptions::default()
        };
        let mut logits = Vec::new();
        self.session(options)?.visit_logits(ids, 0, |_, row| logits.extend_from_slice(row))?;
        Ok(logits)
    }

    /// How many tokens a text has, special ones that it spells included and none added.
    pub fn count_tokens(&self, text: &str) -> Result<usize> {
        Ok(self.tokenizer()?.encode_plain(text)?.len())
    }

    /// The tokenizer; an error where the model folder has none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.shared.tokenizer()
    }

    /// What the loaded model is.
    pub fn model_info(&self) -> &ModelInfo {
        &self.info
    }

    /// What computes now; after a loss and until the next use, what computed last.
    pub fn device_info(&self) -> Arc<DeviceInfo> {
        self.shared.device_info()
    }

    /// How long [`Engine::load`] took.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Bytes that the device holds now; none between a loss and the next use.
    pub fn memory(&self) -> DeviceMemory {
        self.shared.memory()
    }

    /// What loading planned, with the context and the budgets that it settled for; none where the engine was made of parts.
    pub fn memory_plan(&self) -> Option<&MemoryPlan> {
        self.plan.as_deref()
    }

    /// Bytes that an adapter is going to take on the device that computes, from the shapes and types in its file; at most.
    pub fn adapter_bytes(&self, adapter: &BoundAdapter) -> Result<u64> {
        self.shared.tail_bytes(&[&adapter.tail()])
    }

    /// Bytes of decrypted adapters in this process's memory: whole files, held while an adapter of them is open. What is
    /// resident of them on the device is in [`Self::memory`], too.
    pub fn decrypted_bytes(&self) -> u64 {
        let decrypted = self.decrypted.lock().unwrap_or_else(PoisonError::into_inner);
        decrypted.iter().filter_map(Weak::upgrade).map(|private| private.bytes().len() as u64).sum()
    }

    /// What was computed so far.
    pub fn counters(&self) -> Computed {
        let Counters { passes, tokens } = &self.shared.counters;
        Computed { passes: passes.load(Ordering::Relaxed), tokens: tokens.load(Ordering::Relaxed) }
    }

    /// The model as plain data.
    pub fn recipe(&self) -> &Recipe {
        &self.shared.model.recipe
    }

    /// Recipe and weights, for tools that look at them.
    pub fn model(&self) -> &Model {
        &self.shared.model
    }

    /// Sampling defaults of the model's `generation_config.json`.
    pub fn generation_defaults(&self) -> &GenerationOptions {
        &self.shared.defaults
    }
}
