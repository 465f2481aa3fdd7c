//! PEFT folders: `adapter_config.json` + `adapter_model.safetensors`, loaded as they are.
//!
//! The tensors in the file decide what is attached; the configuration decides the scaling. Both must agree: a tensor
//! that the configuration does not target, or that calora would not apply, is an error and never dropped in silence; a
//! targeted module without tensors is reported when the adapter is bound. Semantics follow peft 0.21 (`tuners/lora`,
//! `utils/other.py`), checked against it in `tests/adapters_peft.rs` and, by logits, in `tests/goldens.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::branch::{Branch, BranchKind, LowRank};
use super::targets::{Pattern, Targets};
use super::task::{AdapterInfo, Modules, TaskAdapter};
use crate::error::{Error, Result};
use crate::weights::{SafetensorsFile, read_json};

/// The two files of a PEFT folder.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Options that change what an adapter computes, with the values that leave it plain LoRA, and what else to do.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "calora applies plain LoRA; merge the DoRA into the base, or train without use_dora"),
    ("use_qalora", "calora applies plain LoRA; train without use_qalora"),
    ("use_bdlora", "calora applies plain LoRA; train without use_bdlora"),
    ("lora_bias", "train without lora_bias"),
    ("modules_to_save", "whole modules cannot be swapped with a task; train with LoRA on linears only"),
    ("trainable_token_indices", "train without trainable_token_indices"),
    ("target_parameters", "calora attaches to linears; use target_modules"),
    ("alora_invocation_tokens", "activated LoRA is not applied; train plain LoRA"),
    ("layer_replication", "the base of such an adapter has other layers; merge it in transformers first"),
    ("arrow_config", "calora applies one list of adapters, not a router inside PEFT"),
    ("kasa_config", "calora applies plain LoRA"),
    ("monteclora_config", "calora applies plain LoRA"),
    ("velora_config", "calora applies plain LoRA"),
    (
        "enable_lora",
        "partly enabled fused projections of the first PEFT are not applied; convert it with a newer PEFT",
    ),
];

/// Initialisations that leave the base weights as they are. The others (pissa, olora, corda, lora_ga, loftq, and any
/// that comes after peft 0.21) subtract something from them, so that the saved A and B belong to another base.
const KEEP_BASE: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// Opens a PEFT folder: configuration and header; no tensor is read.
pub(super) fn open(folder: &Path) -> Result<TaskAdapter> {
    let config_path = folder.join(CONFIG);
    if !config_path.exists() {
        let help = "a task adapter is a PEFT folder, or a task file made by `calora pack`";
        return Err(missing(folder, CONFIG, help));
    }
    let config = match read_json(&config_path)? {
        Value::Object(map) => Config { path: config_path, map },
        _ => return Err(Error::malformed(config_path, "expected a JSON object")),
    };
    config.refuse_unsupported()?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() {
        let help =
            "save the adapter with safe_serialization (an adapter_model.bin is not read: it can run code)";
        return Err(missing(folder, WEIGHTS, help));
    }
    let file = SafetensorsFile::open(&weights)?;
    let targets = Targets::parse(&config.path, &config.map)?;
    let modules = config.modules(&file, &targets)?;
    let name = folder.file_name().map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned());
    let info = AdapterInfo { name, path: folder.to_owned(), ..AdapterInfo::default() };
    Ok(TaskAdapter::new(info, &modules)?.with_targets(targets))
}

fn missing(folder: &Path, file: &str, help: &str) -> Error {
    Error::MissingFile { folder: folder.to_owned(), file: file.into(), help: help.into() }
}

/// `adapter_config.json` and where it is.
struct Config {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Config {
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn unsupported(&self, feature: impl Into<String>, help: &str) -> Error {
        Error::UnsupportedAdapter { path: self.path.clone(), feature: feature.into(), help: help.into() }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let kind = self.get("peft_type").and_then(Value::as_str).unwrap_or("(missing)");
        if kind != "LORA" {
            return Err(self.unsupported(format!("peft_type {kind}"), "only LORA adapters are applied"));
        }
        for (key, help) in REFUSED {
            let inert = match self.get(key) {
                None | Some(Value::Bool(false)) => true,
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(map)) => map.is_empty(),
                Some(_) => false,
            };
            if !inert {
                return Err(self.unsupported(format!("{key} = {}", self.map[*key]), help));
            }
        }
        match self.get("bias") {
            None => {}
            Some(Value::String(bias)) if bias == "none" => {}
            Some(other) => {
                return Err(self.unsupported(format!("bias = {other}"), "train with bias = \"none\""));
            }
        }
        let keeps_base = match self.get("init_lora_weights") {
            None | Some(Value::Bool(_)) => true,
            Some(Value::String(init)) => KEEP_BASE.iter().any(|name| init.eq_ignore_ascii_case(name)),
            Some(_) => false,
        };
        if !keeps_base {
            let help = "such an initialisation changes the base weights; save the adapter with PEFT's conversion to \
                        plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)";
            let feature = format!("init_lora_weights = {}", self.map["init_lora_weights"]);
            return Err(self.unsupported(feature, help));
        }
        Ok(())
    }

    fn malformed(&self, key: &str, value: &Value, expected: &str) -> Error {
        Error::malformed(&self.path, format!("{key} = {value}: expected {expected}"))
    }

    /// A rank: a whole number above 0 that fits any tensor.
    fn rank(&self, key: &str, value: &Value) -> Result<usize> {
        match value.as_u64() {
            Some(v @ 1..=0xffff_ffff) => Ok(v as usize),
            _ => Err(self.malformed(key, value, "a whole number above 0")),
        }
    }

    /// An alpha: any number, also 0 or a negative one, as in PEFT.
    fn alpha(&self, key: &str, value: &Value) -> Result<f64> {
        value.as_f64().filter(|v| v.is_finite()).ok_or_else(|| self.malformed(key, value, "a number"))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.malformed(key, other, "true or false")),
        }
    }

    /// `rank_pattern` or `alpha_pattern`, in the file's order: the first key that matches decides.
    fn patterns<T>(&self, key: &str, read: impl Fn(&str, &Value) -> Result<T>) -> Result<Vec<(Pattern, T)>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => {
                map.iter().map(|(k, v)| Ok((Pattern::suffix(&self.path, key, k)?, read(key, v)?))).collect()
            }
            Some(other) => Err(self.malformed(key, other, "an object of patterns")),
        }
    }

    /// Pairs A and B of every module and scales them.
    fn modules(&self, file: &SafetensorsFile, targets: &Targets) -> Result<Modules> {
        // Without the key PEFT takes 8, for both.
        let default = Value::from(8);
        let rank = self.rank("r", self.get("r").unwrap_or(&default))?;
        let alpha = self.alpha("lora_alpha", self.get("lora_alpha").unwrap_or(&default))?;
        let ranks = self.patterns("rank_pattern", |k, v| self.rank(k, v))?;
        let alphas = self.patterns("alpha_pattern", |k, v| self.alpha(k, v))?;
        let stabilised = self.flag("use_rslora")?;
        let mut modules = Modules::new();
        for (module, (a, b)) in self.pairs(file)? {
            if targets.contain(&module) == Some(false) {
                let reason = "is in the file, but its module is not among the configuration's target_modules (with \
                              exclude_modules and layers_to_transform)";
                return Err(Error::tensor(file.path(), &a, reason));
            }
            let (down, up) = (LowRank::Float(file.require(&a)?), LowRank::Float(file.require(&b)?));
            let mut branch = Branch { kind: BranchKind::Lora, scaling: 1.0, down, up };
            branch.check()?;
            let configured = chosen(&ranks, &module, rank);
            if branch.rank() != configured {
                let reason = format!("has rank {}, the configuration says {configured}", branch.rank());
                return Err(Error::tensor(file.path(), &a, reason));
            }
            let (alpha, rank) = (chosen(&alphas, &module, alpha), configured as f64);
            branch.scaling = (if stabilised { alpha / rank.sqrt() } else { alpha / rank }) as f32;
            if !branch.scaling.is_finite() {
                let reason = format!("lora_alpha = {alpha} of module {module} is out of range");
                return Err(Error::malformed(&self.path, reason));
            }
            modules.entry(module).or_default().push(branch);
        }
        Ok(modules)
    }

    /// Module path to the names of its A and B; every other tensor is refused by name.
    fn pairs(&self, file: &SafetensorsFile) -> Result<BTreeMap<String, (String, String)>> {
        let mut found: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        for name in file.names() {
            let path = name.strip_prefix("base_model.model.").unwrap_or(name);
            // Saved from a compiled model; PEFT drops it too.
            let path = path.strip_prefix("_orig_mod.").unwrap_or(path);
            let sides = [".lora_A", ".lora_B"];
            let split = sides.iter().enumerate().find_map(|(side, s)| Some((side, path.split_once(s)?)));
            match split {
                // PEFT drops the adapter's name when it saves; some tools keep it.
                Some((side, (module, ".weight" | ".default.weight"))) => {
                    let slot = &mut found.entry(module.to_owned()).or_default()[side];
                    if slot.replace(name.to_owned()).is_some() {
                        return Err(Error::tensor(
                            file.path(),
                            name,
                            "stands there twice for the same module",
                        ));
                    }
                }
                _ => return Err(self.refuse_tensor(name)),
            }
        }
        let mut pairs = BTreeMap::new();
        for (module, sides) in found {
            match sides {
                [Some(a), Some(b)] => pairs.insert(module, (a, b)),
                [Some(a), None] => return Err(Error::tensor(file.path(), &a, "has no lora_B beside it")),
                [None, Some(b)] => return Err(Error::tensor(file.path(), &b, "has no lora_A beside it")),
                [None, None] => None,
            };
        }
        Ok(pairs)
    }

    fn refuse_tensor(&self, name: &str) -> Error {
        let other_name =
            [".lora_A.", ".lora_B."].iter().any(|s| name.contains(s)) && name.ends_with(".weight");
        let help = if other_name {
            "it belongs to an adapter of another name than \"default\"; save one adapter a folder, with save_pretrained"
        } else if name.contains("lora_embedding") {
            "LoRA on embeddings is not applied; train on linears only"
        } else if name.contains("lora_magnitude_vector") {
            "it belongs to DoRA; train without use_dora"
        } else if name.ends_with(".bias") {
            "trained biases are not applied; train with bias = \"none\""
        } else if name.contains("embed_tokens") {
            "a whole embedding was saved, as PEFT does after the vocabulary was resized; train without resizing it"
        } else {
            "it is no LoRA matrix; whole trained modules (a classification head, say) cannot be swapped with a task"
        };
        self.unsupported(format!("tensor {name}"), help)
    }
}

/// The value of the first pattern that matches the module.
fn chosen<T: Copy>(patterns: &[(Pattern, T)], module: &str, default: T) -> T {
    patterns.iter().find(|(p, _)| p.matches(module)).map_or(default, |(_, v)| *v)
}
