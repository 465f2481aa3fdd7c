//! PEFT LoRAs as one task file, without training: what `calora pack` does.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use calora::adapter::{
    AdapterInfo, Branch, BranchKind, BranchStorage, Coverage, LowRank, TaskAdapter, replace_task_file,
    task_file_bytes,
};
use calora::arch::Recipe;
use calora::weights::{BaseIds, Tensor};
use serde::Deserialize;

/// `task.json` beside `adapter_config.json`: what a task file says of itself.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TaskDescription {
    /// The task's name.
    pub name: Option<String>,
    /// What it does.
    pub description: Option<String>,
    /// Put before the conversation.
    pub system_prompt: Option<String>,
    /// The prompt is continued as it stands, without a chat template.
    pub raw: bool,
    /// Prompts to show it with.
    pub examples: Vec<String>,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// The length of an answer.
    pub max_tokens: Option<usize>,
    /// Sampling defaults.
    pub sampling: Option<serde_json::Value>,
}

impl TaskDescription {
    /// Reads `task.json` of an adapter's folder; a folder without one is described by its name.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("task.json");
        match std::fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{}: not a task.json", path.display()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    /// As a task file says it, under this name.
    pub fn info(self, name: String) -> AdapterInfo {
        AdapterInfo {
            name,
            description: self.description,
            system_prompt: self.system_prompt,
            // A task that continues raw text has the identity as its template.
            chat_template: self.raw.then(|| "{% for m in messages %}{{ m.content }}{% endfor %}".to_owned()),
            stop: self.stop,
            sampling: self.sampling,
            max_tokens: self.max_tokens,
            ..AdapterInfo::default()
        }
    }
}

/// How adapters become one file.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// The task's name; else that of the first folder's `task.json`, else its folder.
    pub name: Option<String>,
    /// A factor for each adapter; empty for 1.
    pub weights: Vec<f32>,
    /// f16 or int8.
    pub storage: BranchStorage,
}

/// Packs adapters for a base into `out`, as [`pack_bytes`] does, and says what the result covers.
pub fn pack(
    adapters: &[TaskAdapter],
    recipe: &Recipe,
    ids: &BaseIds,
    out: &Path,
    options: &PackOptions,
) -> Result<Coverage> {
    replace_task_file(out, &pack_bytes(adapters, recipe, ids, out, options)?)?;
    Ok(TaskAdapter::open(out)?.bind(recipe, ids)?.1)
}

/// Packs adapters for a base into the bytes of one task file; several become one whose effect is their weighted sum: their
/// ranks concatenate. `out` names it in errors.
///
/// The file is bound to the base's source id, so that it runs on every compression of that source. A compressed model
/// that does not know its source gives its compressed id: the file then runs on that model alone.
pub fn pack_bytes(
    adapters: &[TaskAdapter],
    recipe: &Recipe,
    ids: &BaseIds,
    out: &Path,
    options: &PackOptions,
) -> Result<Vec<u8>> {
    let Some(first) = adapters.first() else { bail!("name at least one adapter to pack") };
    if !options.weights.is_empty() && options.weights.len() != adapters.len() {
        bail!("{} weights for {} adapters", options.weights.len(), adapters.len());
    }
    if let Some(weight) = options.weights.iter().find(|w| !w.is_finite()) {
        bail!("a weight is {weight}; weights are finite numbers");
    }
    let mut lists: BTreeMap<String, Vec<Branch>> = BTreeMap::new();
    for (index, adapter) in adapters.iter().enumerate() {
        if adapter.has_recovery() {
            bail!(
                "{}: recovery branches belong to one compressed model; pack LoRAs",
                adapter.info().path.display()
            );
        }
        adapter.bind(recipe, ids)?;
        let weight = options.weights.get(index).copied().unwrap_or(1.0);
        for (module, branches) in adapter.modules() {
            let scaled = branches.iter().map(|b| Branch { scaling: b.scaling * weight, ..b.clone() });
            lists.entry(module.to_owned()).or_default().extend(scaled);
        }
    }
    let modules: BTreeMap<String, Vec<Branch>> = lists
        .into_iter()
        .map(|(module, branches)| Ok((module, vec![stack(branches)?])))
        .collect::<Result<_>>()?;
    let task = TaskDescription::read(&first.info().path)?;
    let name = options.name.clone().or(task.name.clone()).unwrap_or_else(|| first.info().name.clone());
    let info = task.info(name);
    let base = ids.source.as_ref().or(ids.compressed.as_ref());
    Ok(task_file_bytes(out, &info, base.map(String::as_str), &modules, options.storage)?)
}

/// Several branches of one linear as one: A and B concatenate along the rank. The largest scaling stays a number of the
/// file and each B is multiplied, in float32, by its own in relation to it: at most 1, so that f16 cannot overflow and
/// the strongest adapter is stored as it would be alone.
fn stack(branches: Vec<Branch>) -> Result<Branch> {
    if let [one] = &branches[..] {
        return Ok(one.clone());
    }
    let cols = branches[0].down.shape().1;
    let rows = branches[0].up.shape().0;
    let rank: usize = branches.iter().map(Branch::rank).sum();
    let largest = branches.iter().fold(0.0f32, |m, b| m.max(b.scaling.abs()));
    let scaling = if largest > 0.0 { largest } else { 1.0 };
    let mut down = Vec::with_capacity(rank * cols);
    let mut up = vec![0.0; rows * rank];
    let mut at = 0;
    for branch in &branches {
        down.extend(branch.down.to_f32()?);
        for (row, values) in branch.up.to_f32()?.chunks(branch.rank()).enumerate() {
            for (k, value) in values.iter().enumerate() {
                up[row * rank + at + k] = value * (branch.scaling / scaling);
            }
        }
        at += branch.rank();
    }
    Ok(Branch {
        kind: BranchKind::Lora,
        scaling,
        down: LowRank::Float(Tensor::from_f32("lora_A", &[rank, cols], &down)?),
        up: LowRank::Float(Tensor::from_f32("lora_B", &[rows, rank], &up)?),
    })
}
