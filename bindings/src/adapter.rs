//! Task adapters: opened against one engine, shared by its sessions.

use std::sync::Mutex;
use std::sync::PoisonError;

use calora::adapter::protect::{is_encrypted, protect, read_task_file};
use calora::adapter::{AdapterOptions, Protection, PublicKey, SecretKey, replace_task_file};
use calora::engine::BoundAdapter;
use zeroize::Zeroize;

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
    /// Whether the file is encrypted.
    pub encrypted: bool,
    /// Whether it says what it does to the logits of a probe, so that it can be proven to act.
    pub has_canary: bool,
    /// The public key that signed it, in hexadecimal digits; only where trusted signers were asked for.
    pub signer: Option<String>,
}

/// How an adapter is opened. It has no `Debug`: nothing shows the key.
#[derive(Clone, Default, uniffi::Record)]
pub struct AdapterOpenOptions {
    /// The 32 bytes that an encrypted adapter was encrypted with; a plain one does not need them.
    #[uniffi(default = None)]
    pub key: Option<Vec<u8>>,
    /// Public keys of 32 bytes: only what one of them signed is opened. An empty list trusts nobody; absent, no signature
    /// is asked for.
    #[uniffi(default = None)]
    pub trusted_signers: Option<Vec<Vec<u8>>>,
    /// Whether the adapter must prove, by two short passes, that it acts, and as it did where it was made.
    #[uniffi(default = false)]
    pub check_canary: bool,
}

impl AdapterOpenOptions {
    /// Moves the key into memory that is overwritten when it is dropped, and overwrites this copy.
    pub(crate) fn take(mut self) -> Result<AdapterOptions> {
        let key = self.key.as_deref().map(SecretKey::from_slice).transpose();
        self.key.zeroize();
        let signers =
            self.trusted_signers.map(|keys| keys.iter().map(|k| PublicKey::from_slice(k)).collect());
        let trusted_signers = signers.transpose()?;
        Ok(AdapterOptions { key: key?, trusted_signers, canary: self.check_canary })
    }
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
            encrypted: info.encrypted,
            has_canary: info.canary.is_some(),
            signer: info.signer.map(|signer| signer.to_string()),
        }
    }
}

/// Reads a task file's or PEFT folder's header, without an engine; no tensor is read.
#[uniffi::export]
pub fn inspect_adapter(path: String) -> Result<AdapterInfo> {
    Ok(AdapterInfo::of(&calora::adapter::TaskAdapter::open(path)?))
}

/// Encrypts a task file with a key of 32 bytes and writes the result to `out`, which may be the same place. Nothing
/// unencrypted is written. A PEFT folder is packed into a task file first, by `calora pack`.
#[uniffi::export]
pub fn encrypt_adapter(path: String, out: String, mut key: Vec<u8>) -> Result<()> {
    let secret = SecretKey::from_slice(&key);
    key.zeroize();
    let path = std::path::Path::new(&path);
    if path.is_dir() || is_encrypted(path) {
        let feature = if path.is_dir() { "encrypting a PEFT folder" } else { "encrypting twice" }.into();
        let reason = "give a plain task file; `calora pack` makes one of a folder".into();
        return Err(EngineError::Unsupported { path: path.display().to_string(), feature, reason });
    }
    let task_file = read_task_file(path, None)?;
    // Refuses what is no task file.
    calora::adapter::TaskAdapter::open(path)?;
    let protection = Protection { encrypt: Some(secret?), ..Protection::default() };
    Ok(replace_task_file(out.as_ref(), &protect(path, task_file.bytes(), &protection)?)?)
}

/// A memory-mapped adapter that fits one engine's model.
#[derive(uniffi::Object)]
pub struct TaskAdapter {
    info: AdapterInfo,
    coverage: String,
    bound: Mutex<Option<BoundAdapter>>,
}

impl TaskAdapter {
    pub(crate) fn open(
        engine: &calora::engine::Engine,
        path: &str,
        options: &AdapterOptions,
    ) -> Result<Self> {
        let adapter = calora::adapter::TaskAdapter::open_with(path, options)?;
        let (bound, coverage) = engine.bind_adapter(&adapter)?;
        engine.prove(&bound, options)?;
        Ok(Self::new(&adapter, bound, &coverage))
    }

    pub(crate) fn new(
        adapter: &calora::adapter::TaskAdapter,
        bound: BoundAdapter,
        coverage: &calora::adapter::Coverage,
    ) -> Self {
        Self {
            info: AdapterInfo::of(adapter),
            coverage: coverage.to_string(),
            bound: Mutex::new(Some(bound)),
        }
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
