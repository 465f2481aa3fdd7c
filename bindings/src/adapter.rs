//! Task adapters: opened against one engine, shared by its sessions.

use std::sync::Mutex;
use std::sync::PoisonError;

use calora::engine::BoundAdapter;

use crate::error::{EngineError, Result};

/// What an adapter file says of itself.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct AdapterInfo {
    /// The task's name.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// The file or PEFT folder.
    pub path: String,
    /// The id of the base it was made for; absent in a PEFT folder, where shapes are checked only.
    pub base_id: Option<String>,
    /// Bytes of its branches in the file.
    pub bytes: u64,
    /// Modules that it touches.
    pub modules: u32,
    /// The largest rank beside one linear, its branches added up.
    pub rank: u32,
    /// Whether it steers the model (LoRA).
    pub has_lora: bool,
    /// Whether it repairs compression (recovery), which ties it to one compressed model.
    pub has_recovery: bool,
    /// What it tells the model before a conversation.
    pub instructions: Option<String>,
}

impl AdapterInfo {
    pub(crate) fn of(adapter: &calora::adapter::TaskAdapter) -> Self {
        let info = adapter.info();
        let mut rank = 0;
        let (mut modules, mut has_lora) = (0, false);
        for (_, branches) in adapter.modules() {
            modules += 1;
            rank = rank.max(branches.iter().map(|b| b.rank()).sum::<usize>());
            has_lora |= branches.iter().any(|b| b.kind == calora::adapter::BranchKind::Lora);
        }
        Self {
            name: info.name.clone(),
            description: info.description.clone(),
            path: info.path.display().to_string(),
            base_id: info.base.clone(),
            bytes: adapter.byte_len() as u64,
            modules,
            rank: rank as u32,
            has_lora,
            has_recovery: adapter.has_recovery(),
            instructions: info.system_prompt.clone(),
        }
    }
}

/// Reads a task file's or PEFT folder's header, without an engine; no tensor is read.
#[uniffi::export]
pub fn inspect_adapter(path: String) -> Result<AdapterInfo> {
    Ok(AdapterInfo::of(&calora::adapter::TaskAdapter::open(path)?))
}

/// A memory-mapped adapter that fits one engine's model.
#[derive(uniffi::Object)]
pub struct TaskAdapter {
    info: AdapterInfo,
    coverage: String,
    bound: Mutex<Option<BoundAdapter>>,
}

impl TaskAdapter {
    pub(crate) fn open(engine: &calora::engine::Engine, path: &str) -> Result<Self> {
        let adapter = calora::adapter::TaskAdapter::open(path)?;
        let bound = engine.fit_adapter(&adapter)?;
        Self::new(engine, &adapter, bound)
    }

    pub(crate) fn new(
        engine: &calora::engine::Engine,
        adapter: &calora::adapter::TaskAdapter,
        bound: BoundAdapter,
    ) -> Result<Self> {
        let (_, coverage) = engine.bind_adapter(adapter)?;
        Ok(Self {
            info: AdapterInfo::of(adapter),
            coverage: coverage.to_string(),
            bound: Mutex::new(Some(bound)),
        })
    }

    pub(crate) fn bound(&self) -> Result<BoundAdapter> {
        let bound = self.bound.lock().unwrap_or_else(PoisonError::into_inner);
        bound.clone().ok_or_else(|| EngineError::closed("adapter"))
    }
}

#[uniffi::export]
impl TaskAdapter {
    /// What the file says of itself.
    pub fn info(&self) -> AdapterInfo {
        self.info.clone()
    }

    /// Which of the model's linears it touches, which not, and whether the base could be checked; for people.
    pub fn coverage(&self) -> String {
        self.coverage.clone()
    }

    /// Lets go of the file. Sessions that use the adapter keep it until they switch or close. Twice is fine.
    pub fn close(&self) {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
