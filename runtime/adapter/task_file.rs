//! The task file: one safetensors file that holds a task. Version 1.
//!
//! **Tensors**, named as PEFT names them, `base_model.model.{module}.{matrix}.weight`:
//!
//! | matrix | shape | |
//! |---|---|---|
//! | `lora_A`, `lora_B` | (r, K), (R, r) | LoRA branch: `scaling.lora · B (A x)` |
//! | `recovery_D`, `recovery_U` | (r', K), (R, r') | recovery branch: `scaling.recovery · U act(D x)` |
//!
//! in f16, bf16 or f32; or I8 with a companion `{name}_scale` F32 (rows), value = integer · scale of its row.
//!
//! **Metadata**, all strings:
//!
//! | key | value |
//! |---|---|
//! | `calora.format` | `task-adapter` |
//! | `calora.version` | `1`; another one is refused |
//! | `calora.name` | the task's name |
//! | `calora.base` | source id (LoRA only) or compressed id (recovery), or `unbound`: shapes alone are checked; required |
//! | `calora.scaling` | JSON: module → `{"lora": s, "recovery": s}`, exactly for the branches in the file; required |
//! | `calora.activation` | `gelu` (exact) or `linear`, between D and U; without the key `gelu` |
//! | `calora.description`, `calora.system_prompt`, `calora.chat_template` | text, optional |
//! | `calora.stop`, `calora.sampling`, `calora.max_tokens` | JSON list, object, number, optional |
//! | `calora.probe` | the canary ([`super::canary`]), optional |
//! | `calora.signer`, `calora.signature` | ed25519 ([`super::protect`]), optional, looked at only when asked |
//!
//! The file may be encrypted as a whole; it is then opened from memory.
//! Equal tasks are written as equal files, byte for byte: metadata are sorted by key.
//!
//! **Reserved** for later versions. `calora.base_recovery` and `calora.prefix` change what the adapter computes, so that a reader
//! that does not know them refuses the file. Other keys are ignored; a tensor of another name is refused.
//!
//! A LoRA that was trained on a compressed model may be bound to its compressed id, a recovery branch that was made for
//! an uncompressed model to its source id: each then runs on that model alone.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::branch::{Branch, BranchKind, LowRank};
use super::canary::{self, Canary};
use super::protect::{AdapterOptions, is_encrypted, sealed, signature};
use super::task::{AdapterInfo, Modules, TaskAdapter};
use crate::error::{Error, Result};
use crate::weights::{DType, PrivateBytes, SafetensorsFile};

/// `calora.format` of every version.
const FORMAT: &str = "task-adapter";
/// The version written and read.
const VERSION: &str = "1";
/// The base of a file that belongs to none in particular.
const UNBOUND: &str = "unbound";
/// Keys that a reader of version 1 must not ignore.
const UNKNOWN_MEANING: &[&str] = &["calora.base_recovery", "calora.prefix"];

/// The two matrices of each kind of branch, and its key in `calora.scaling`.
const LORA: [&str; 3] = ["lora_A", "lora_B", "lora"];
const RECOVERY: [&str; 3] = ["recovery_D", "recovery_U", "recovery"];

/// Opens a task file: header and metadata; no tensor is read unless it is encrypted or its signature is asked for.
pub(super) fn open(path: &Path, options: &AdapterOptions) -> Result<TaskAdapter> {
    if !is_encrypted(path) {
        return read(&SafetensorsFile::open(path)?, options);
    }
    let private = Arc::new(sealed::open(path, options.key.as_ref())?);
    let mut adapter = open_private(path, private, options)?;
    adapter.info_mut().encrypted = true;
    Ok(adapter)
}

/// Opens a task file that lies in memory.
pub(super) fn open_private(
    path: &Path,
    private: Arc<PrivateBytes>,
    options: &AdapterOptions,
) -> Result<TaskAdapter> {
    let file = SafetensorsFile::from_private(path, private.clone())?;
    Ok(read(&file, options)?.with_private(Some(private)))
}

fn read(file: &SafetensorsFile, options: &AdapterOptions) -> Result<TaskAdapter> {
    let path = file.path();
    // First of all: nothing of a file that is not trusted is looked at.
    let trusted = options.trusted_signers.as_deref();
    let signer = trusted.map(|trusted| signature::trusted_signer(file, trusted)).transpose()?;
    let metadata = Metadata { path, map: file.metadata() };
    metadata.check_format()?;
    let recovery = match metadata.get("activation").unwrap_or("gelu") {
        "gelu" => BranchKind::Recovery,
        "linear" => BranchKind::LinearRecovery,
        other => {
            return Err(metadata.unsupported(format!("activation {other}"), "known are gelu and linear"));
        }
    };
    let scaling = metadata.object("scaling")?.unwrap_or_default();
    let mut scalings: usize = scaling.values().map(|v| v.as_object().map_or(1, |kinds| kinds.len())).sum();
    let mut modules = Modules::new();
    for (module, matrices) in group(file)? {
        for ([down, up, key], kind) in [(LORA, BranchKind::Lora), (RECOVERY, recovery)] {
            let (a, b) = match (matrices.get(down), matrices.get(up)) {
                (None, None) => continue,
                (Some(a), Some(b)) => (low_rank(file, a)?, low_rank(file, b)?),
                (Some(a), None) => return Err(Error::tensor(path, a, format!("has no {up} beside it"))),
                (None, Some(b)) => return Err(Error::tensor(path, b, format!("has no {down} beside it"))),
            };
            let scaling = scaling.get(&module).and_then(|of| of.get(key)?.as_f64()).map(|s| s as f32);
            let Some(scaling) = scaling.filter(|s| s.is_finite()) else {
                let reason = format!("calora.scaling has no number for {key} of {module}");
                return Err(Error::malformed(path, reason));
            };
            scalings -= 1;
            let branch = Branch { kind, scaling, down: a, up: b };
            branch.check()?;
            modules.entry(module.clone()).or_default().push(branch);
        }
    }
    if scalings > 0 {
        let reason = format!("calora.scaling names {scalings} branches that have no tensors in the file");
        return Err(Error::malformed(path, reason));
    }
    let canary = file.metadata().get(canary::KEY).map(|text| Canary::parse(path, text)).transpose()?;
    TaskAdapter::new(AdapterInfo { canary, signer, ..metadata.info()? }, &modules)
}

/// The `__metadata__` of a task file.
struct Metadata<'a> {
    path: &'a Path,
    map: &'a HashMap<String, String>,
}

impl Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.map.get(&format!("calora.{key}")).map(String::as_str)
    }

    fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(str::to_owned)
    }

    fn json(&self, key: &str) -> Result<Option<Value>> {
        let Some(text) = self.get(key) else { return Ok(None) };
        match serde_json::from_str(text) {
            Ok(value) => Ok(Some(value)),
            Err(e) => Err(Error::malformed(self.path, format!("calora.{key} is not JSON: {e}"))),
        }
    }

    fn object(&self, key: &str) -> Result<Option<Map<String, Value>>> {
        match self.json(key)? {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(_) => Err(Error::malformed(self.path, format!("calora.{key} is not a JSON object"))),
        }
    }

    fn unsupported(&self, feature: String, help: &str) -> Error {
        Error::UnsupportedAdapter { path: self.path.to_owned(), feature, help: help.into() }
    }

    fn check_format(&self) -> Result<()> {
        match (self.get("format"), self.get("version")) {
            (Some(FORMAT), Some(VERSION)) => {}
            (Some(FORMAT), version) => {
                let feature = format!("task file version {}", version.unwrap_or("(none)"));
                return Err(self.unsupported(feature, "this calora reads version 1; update calora"));
            }
            _ => {
                let reason = "has no calora.format = task-adapter in its metadata; a PEFT adapter is opened by its \
                              folder, or packed by `calora pack`";
                return Err(Error::malformed(self.path, reason));
            }
        }
        match UNKNOWN_MEANING.iter().find(|key| self.map.contains_key(**key)) {
            Some(key) => {
                Err(self.unsupported((*key).to_owned(), "this calora does not know it; update calora"))
            }
            None => Ok(()),
        }
    }

    fn info(&self) -> Result<AdapterInfo> {
        let stop = match self.json("stop")? {
            None => Vec::new(),
            Some(value) => serde_json::from_value(value).map_err(|e| {
                Error::malformed(self.path, format!("calora.stop is not a list of strings: {e}"))
            })?,
        };
        let Some(base) = self.text("base") else {
            let reason = "has no calora.base: the id of its base, or `unbound`";
            return Err(Error::malformed(self.path, reason));
        };
        let max_tokens = match self.json("max_tokens")? {
            None => None,
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) => Some(n),
                None => {
                    let reason = format!("calora.max_tokens = {value} is not a number of tokens");
                    return Err(Error::malformed(self.path, reason));
                }
            },
        };
        let stem = self.path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        Ok(AdapterInfo {
            name: self.text("name").unwrap_or(stem),
            description: self.text("description"),
            path: self.path.to_owned(),
            base: Some(base).filter(|base| base != UNBOUND),
            system_prompt: self.text("system_prompt"),
            chat_template: self.text("chat_template"),
            stop,
            sampling: self.object("sampling")?.map(Value::Object),
            max_tokens,
            ..AdapterInfo::default()
        })
    }
}

/// Module path → matrix name → tensor name; a tensor that is no part of a branch is refused.
fn group(file: &SafetensorsFile) -> Result<BTreeMap<String, HashMap<&'static str, String>>> {
    let mut modules: BTreeMap<String, HashMap<&'static str, String>> = BTreeMap::new();
    for name in file.names() {
        if name.strip_suffix("_scale").is_some_and(|whole| file.contains(whole)) {
            continue;
        }
        let place = name.strip_prefix("base_model.model.").and_then(|n| n.strip_suffix(".weight"));
        let matrix = place.and_then(|p| p.rsplit_once('.')).and_then(|(module, matrix)| {
            let known = [LORA[0], LORA[1], RECOVERY[0], RECOVERY[1]];
            Some((module, *known.iter().find(|k| **k == matrix)?))
        });
        let Some((module, matrix)) = matrix else {
            return Err(Error::tensor(file.path(), name, "is no part of a LoRA or recovery branch"));
        };
        modules.entry(module.to_owned()).or_default().insert(matrix, name.to_owned());
    }
    Ok(modules)
}

fn low_rank(file: &SafetensorsFile, name: &str) -> Result<LowRank> {
    let values = file.require(name)?;
    let scale_name = format!("{name}_scale");
    if values.dtype != DType::I8 {
        if file.contains(&scale_name) {
            return Err(Error::tensor(file.path(), &scale_name, "stands beside a tensor that is not I8"));
        }
        return Ok(LowRank::Float(values));
    }
    let scales = file.require(&scale_name)?;
    if scales.dtype != DType::F32 {
        let reason = format!("is {:?}, expected F32", scales.dtype);
        return Err(Error::tensor(file.path(), &scale_name, reason));
    }
    scales.expect_shape(&values.shape[..1.min(values.shape.len())])?;
    Ok(LowRank::Int8 { values, scales })
}

/// How the branches of a written file are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchStorage {
    /// Half floats.
    F16,
    /// Int8, a scale a row: half the bytes, about 0.4 % of rounding noise in each branch.
    Int8,
}

/// Writes [`task_file_bytes`] as [`replace_task_file`] does.
pub fn write_task_file(
    path: &Path,
    info: &AdapterInfo,
    base: Option<&str>,
    modules: &BTreeMap<String, Vec<Branch>>,
    storage: BranchStorage,
) -> Result<()> {
    refuse_other_file(path)?;
    replace_task_file(path, &task_file_bytes(path, info, base, modules, storage)?)
}

/// Writes a task file, encrypted or not: first beside its place, then renamed, so that a reader sees the old one or the
/// new one whole. An older task file of this name is replaced; anything else that stands there (a model, say) is not.
pub fn replace_task_file(path: &Path, bytes: &[u8]) -> Result<()> {
    refuse_other_file(path)?;
    crate::weights::write_atomically(path, bytes)
}

/// The bytes of a task file; `path` names it in errors.
///
/// `base` is the id that the adapter is bound to, or `None`. A module may have one LoRA and one recovery branch. A canary
/// is written; signing and encrypting come after, by [`super::protect::protect`].
pub fn task_file_bytes(
    path: &Path,
    info: &AdapterInfo,
    base: Option<&str>,
    modules: &BTreeMap<String, Vec<Branch>>,
    storage: BranchStorage,
) -> Result<Vec<u8>> {
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut scaling = Map::new();
    let mut activation = None;
    for (module, branches) in modules {
        let mut scales = Map::new();
        for branch in branches {
            let [down, up, key] = if branch.kind == BranchKind::Lora { LORA } else { RECOVERY };
            if branch.kind != BranchKind::Lora && *activation.get_or_insert(branch.kind) != branch.kind {
                return Err(Error::malformed(
                    path,
                    "recovery branches with and without GELU cannot share a file",
                ));
            }
            if scales.insert(key.into(), json!(branch.scaling)).is_some() {
                return Err(Error::malformed(
                    path,
                    format!("{module} has two {key} branches; stack them into one"),
                ));
            }
            for (matrix, values) in [(down, &branch.down), (up, &branch.up)] {
                encode(&format!("base_model.model.{module}.{matrix}.weight"), values, storage, &mut tensors)?;
            }
        }
        scaling.insert(module.clone(), Value::Object(scales));
    }
    let mut metadata = HashMap::from([
        ("calora.format".to_owned(), FORMAT.to_owned()),
        ("calora.version".to_owned(), VERSION.to_owned()),
        ("calora.name".to_owned(), info.name.clone()),
        ("calora.base".to_owned(), base.unwrap_or(UNBOUND).to_owned()),
        ("calora.scaling".to_owned(), Value::Object(scaling).to_string()),
    ]);
    let linear = activation == Some(BranchKind::LinearRecovery);
    let optional = [
        ("activation", Some(if linear { "linear" } else { "gelu" }.to_owned())),
        ("description", info.description.clone()),
        ("system_prompt", info.system_prompt.clone()),
        ("chat_template", info.chat_template.clone()),
        ("stop", (!info.stop.is_empty()).then(|| json!(info.stop).to_string())),
        ("sampling", info.sampling.as_ref().map(Value::to_string)),
        ("max_tokens", info.max_tokens.map(|n| n.to_string())),
        ("probe", info.canary.as_ref().map(Canary::to_json)),
    ];
    metadata.extend(optional.into_iter().filter_map(|(k, v)| Some((format!("calora.{k}"), v?))));
    let mut views = Vec::new();
    for (name, dtype, shape, bytes) in &tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| Error::tensor(path, name, e))?;
        views.push((name.as_str(), view));
    }
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(|e| Error::malformed(path, e))?;
    in_order(bytes).ok_or_else(|| Error::malformed(path, "its header is not what was written"))
}

/// The same file with the metadata sorted by name: the crate writes them in the random order of a map, and equal tasks are
/// to be equal files, for whoever compares, caches or signs them. JSON in another order has the same length.
fn in_order(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    let (len, rest) = bytes.split_first_chunk_mut::<8>()?;
    let header = rest.get_mut(..usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    let mut entries: Map<String, Value> = serde_json::from_slice(header).ok()?;
    entries.get_mut("__metadata__")?.as_object_mut()?.sort_keys();
    let sorted = serde_json::to_vec(&entries).ok()?;
    header.get_mut(..sorted.len())?.copy_from_slice(&sorted);
    Some(bytes)
}

/// Refuses to write over a file that is no task file.
fn refuse_other_file(path: &Path) -> Result<()> {
    if !path.exists() || is_encrypted(path) {
        return Ok(());
    }
    let is_task = SafetensorsFile::open(path)
        .is_ok_and(|file| file.metadata().get("calora.format").is_some_and(|f| f == FORMAT));
    if is_task {
        return Ok(());
    }
    let reason = "is there already and is no task file; choose another name, or remove it";
    Err(Error::option("task file", path.display(), reason))
}

fn encode(
    name: &str,
    values: &LowRank,
    storage: BranchStorage,
    out: &mut Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
) -> Result<()> {
    let (rows, cols) = values.shape();
    let values = values.to_f32()?;
    match storage {
        BranchStorage::F16 => {
            let halves: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            if let Some(at) = halves.iter().position(|h| !h.is_finite()) {
                let reason = format!("element {at} = {} is beyond the range of f16", values[at]);
                return Err(Error::tensor("(task file)", name, reason));
            }
            out.push((name.into(), Dtype::F16, vec![rows, cols], bytemuck::cast_slice(&halves).to_vec()));
        }
        BranchStorage::Int8 => {
            let (mut bytes, mut scales) = (Vec::with_capacity(values.len()), Vec::with_capacity(rows));
            for row in values.chunks(cols.max(1)) {
                let scale = row.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                bytes.extend(row.iter().map(|v| (v * inverse).round_ties_even() as i8 as u8));
                scales.push(scale);
            }
            out.push((name.into(), Dtype::I8, vec![rows, cols], bytes));
            let scales = bytemuck::cast_slice(&scales).to_vec();
            out.push((format!("{name}_scale"), Dtype::F32, vec![rows], scales));
        }
    }
    Ok(())
}
