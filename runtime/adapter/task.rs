//! A task adapter: what a file or folder attaches to which module, and the check that it belongs to a model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::branch::{Branch, BranchKind, Tail};
use super::canary::Canary;
use super::coverage::{BaseCheck, Coverage};
use super::protect::{AdapterOptions, PublicKey};
use super::table::{BoundTail, BranchTable};
use super::targets::Targets;
use super::{peft, task_file};
use crate::arch::Recipe;
use crate::error::{Error, Result};
use crate::weights::{BaseIds, PrivateBytes};

/// Module path (`model.layers.0.self_attn.q_proj`) to its branches.
pub(super) type Modules = BTreeMap<String, Vec<Branch>>;

/// What an adapter says of itself; everything but the name and path is optional in a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdapterInfo {
    /// The task's name.
    pub name: String,
    /// What it does, for people.
    pub description: Option<String>,
    /// The file or folder.
    pub path: PathBuf,
    /// The base's id; `None` for a PEFT folder or an unbound file.
    pub base: Option<String>,
    /// Put before the conversation.
    pub system_prompt: Option<String>,
    /// Replaces the model's chat template.
    pub chat_template: Option<String>,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// Sampling defaults, as JSON.
    pub sampling: Option<serde_json::Value>,
    /// The default length of an answer.
    pub max_tokens: Option<usize>,
    /// What it does to the logits after a short prompt, where that was recorded.
    pub canary: Option<Canary>,
    /// Who signed it, where trusted signers were asked for: then the signature was checked.
    pub signer: Option<PublicKey>,
    /// Whether the file is encrypted.
    pub encrypted: bool,
}

/// An opened adapter: header and metadata; its tensors stay in the file until a device makes them resident.
#[derive(Clone, Debug)]
pub struct TaskAdapter {
    info: AdapterInfo,
    table: Arc<BranchTable>,
    /// What a PEFT configuration says it targets.
    targets: Option<Targets>,
    /// All of its file, where that lies in memory.
    private: Option<Arc<PrivateBytes>>,
}

impl TaskAdapter {
    pub(super) fn new(info: AdapterInfo, modules: &Modules) -> Result<Self> {
        let table = Arc::new(BranchTable::pack(modules)?);
        Ok(Self { info, table, targets: None, private: None })
    }

    pub(super) fn with_private(self, private: Option<Arc<PrivateBytes>>) -> Self {
        Self { private, ..self }
    }

    pub(super) fn with_targets(self, targets: Targets) -> Self {
        Self { targets: Some(targets), ..self }
    }

    /// Opens a task file, or a PEFT folder: [`Self::open_with`] without a key or questions.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &AdapterOptions::default())
    }

    /// Opens a task file, encrypted or not, or a PEFT folder.
    ///
    /// An encrypted file without its key is [`Error::Locked`]; one without a trusted signature, where that is asked for,
    /// [`Error::Untrusted`]. The canary is the engine's to check.
    pub fn open_with(path: impl AsRef<Path>, options: &AdapterOptions) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return task_file::open(path, options);
        }
        match &options.trusted_signers {
            None => peft::open(path),
            Some(_) => Err(Error::Untrusted {
                path: path.to_owned(),
                reason:
                    "a PEFT folder carries no signature; make a task file of it with `calora pack --sign`"
                        .into(),
            }),
        }
    }

    /// A task file whose bytes are in memory, and are copied; `path` names it in errors and need not exist.
    pub fn from_bytes(path: impl AsRef<Path>, task_file: &[u8]) -> Result<Self> {
        let path = path.as_ref();
        let private = Arc::new(PrivateBytes::copy(path, task_file)?);
        task_file::open_private(path, private, &AdapterOptions::default())
    }

    /// Name, description, base id and defaults.
    pub fn info(&self) -> &AdapterInfo {
        &self.info
    }

    pub(super) fn info_mut(&mut self) -> &mut AdapterInfo {
        &mut self.info
    }

    /// Module paths with their branches, which are made for the caller: an open adapter holds no tensors.
    pub fn modules(&self) -> impl Iterator<Item = (&str, Vec<Branch>)> {
        self.table.modules()
    }

    /// Bytes of all branches in the file.
    pub fn byte_len(&self) -> usize {
        self.table.byte_len()
    }

    /// Its file in this process's memory, where it was decrypted.
    pub(crate) fn private(&self) -> Option<&Arc<PrivateBytes>> {
        self.private.as_ref()
    }

    /// Whether any branch repairs compression, which ties the adapter to one compressed base.
    pub fn has_recovery(&self) -> bool {
        self.table.any(|kind| kind != BranchKind::Lora)
    }

    /// The adapter as a tail for this model, with a report of what it touches.
    ///
    /// Refuses an adapter of another base, one that touches nothing, one with a module that the model does not have
    /// (part of an adapter is another adapter), and shapes that do not fit.
    pub fn bind(&self, recipe: &Recipe, ids: &BaseIds) -> Result<(Tail, Coverage)> {
        let (tail, base) = self.fit(recipe, ids)?;
        let mut coverage = Coverage::new(&self.info.name, recipe, &tail, base)?;
        if let Some(targets) = &self.targets {
            coverage.missing = coverage.untouched.clone();
            coverage.missing.retain(|module| targets.contain(module) == Some(true));
            coverage.unchecked = targets.unknown();
        }
        Ok((tail, coverage))
    }

    /// [`Self::bind`] without the report, which reads a piece of each branch: this reads nothing.
    pub fn fit(&self, recipe: &Recipe, ids: &BaseIds) -> Result<(Tail, BaseCheck)> {
        let base = self.check_base(ids)?;
        let mut tail = Tail { branches: vec![Vec::new(); recipe.linears.len()] };
        let mut unknown = Vec::new();
        for (path, branches) in self.modules() {
            match recipe.linear(path) {
                Some(id) => tail.branches[id.0] = branches,
                None => unknown.push(path),
            }
        }
        self.refuse_unknown(recipe, &unknown)?;
        crate::device::check_tail(recipe, &tail)?;
        Ok((tail, base))
    }

    /// The branches of an adapter that fits this model, made when they are needed.
    pub(crate) fn packed(&self, recipe: &Recipe) -> BoundTail {
        let place = |module: &str| recipe.linear(module).map_or(u32::MAX, |id| id.0 as u32);
        let places = self.table.branch_modules().map(place).collect();
        BoundTail::Packed { table: self.table.clone(), linears: recipe.linears.len(), places }
    }

    /// Part of an adapter is another adapter: every module must be in the model.
    fn refuse_unknown(&self, recipe: &Recipe, unknown: &[&str]) -> Result<()> {
        let modules = self.modules().count();
        if unknown.is_empty() && modules > 0 {
            return Ok(());
        }
        let named = list(unknown);
        let fused = FUSED.iter().find(|f| unknown.iter().any(|u| u.rsplit('.').next() == Some(f)));
        if unknown.len() == modules {
            let names = if unknown.is_empty() { "no branches".into() } else { named };
            let has = recipe.linears.first().map_or("no linears", |l| l.path.as_str());
            let fused = fused.map_or_else(String::new, |name| format!("; {name}: {FUSED_HELP}"));
            return Err(Error::AdapterTouchesNothing {
                adapter: self.info.name.clone(),
                reason: format!("it has {names}; the model has {has} and so on{fused}"),
            });
        }
        let (what, help) = match fused {
            Some(name) => (format!("fused projection {name}"), FUSED_HELP),
            None => ("a module that the model does not have".into(), PARTIAL_HELP),
        };
        let (path, feature) = (self.info.path.clone(), format!("{what} ({named})"));
        Err(Error::UnsupportedAdapter { path, feature, help: help.into() })
    }

    /// LoRA alone runs on the source and on all its compressions; recovery repairs one compression.
    fn check_base(&self, ids: &BaseIds) -> Result<BaseCheck> {
        let Some(expected) = &self.info.base else { return Ok(BaseCheck::Unbound) };
        let (source, compressed) = (ids.source.as_ref(), ids.compressed.as_ref());
        let fits = if self.has_recovery() { compressed == Some(expected) } else { source == Some(expected) };
        // A LoRA retrained on one compressed model is bound to it alone; a recovery made for an uncompressed one to that.
        let fits = fits || compressed.or(source) == Some(expected);
        if fits {
            return Ok(BaseCheck::Matched);
        }
        let actual = compressed.or(source).map_or("without an id", String::as_str);
        Err(Error::AdapterMismatch {
            adapter: self.info.name.clone(),
            expected: expected.clone(),
            actual: actual.to_owned(),
        })
    }
}

const FUSED_HELP: &str =
    "such a linear joins several that this model has apart; train the LoRA on this model";
const PARTIAL_HELP: &str =
    "attaching a part of an adapter would change its meaning; use the base that it was trained on";

/// Names of projections that hold several linears of a Llama in one matrix, in models that people train LoRAs on.
const FUSED: &[&str] = &["qkv_proj", "query_key_value", "gate_up_proj", "c_attn", "W_pack", "Wqkv", "wqkv"];

/// The first names of a list, and how many more there are.
fn list(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}
