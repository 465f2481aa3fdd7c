//! PEFT folders: `adapter_config.json` + `adapter_model.safetensors`, loaded as they are.
//!
//! The tensors in the file decide what is attached; the configuration decides the scaling. Both must agree: a tensor
//! that the configuration does not target, or that calora would not apply, is an error and never dropped in silence.
//! Semantics follow peft 0.21 (`tuners/lora`, `utils/other.py`), checked against it in `tests/goldens.rs`.

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

/// Initialisations that change the base weights, so that the saved A and B do not belong to the original base.
const CHANGED_BASE: &[&str] = &["pissa", "olora", "corda", "lora_ga", "loftq"];

/// Opens a PEFT folder: configuration and header; no tensor is read.
pub(super) fn open(folder: &Path) -> Result<TaskAdapter> {
    let config_path = folder.join(CONFIG);
    let config = match read_json(&config_path)? {
        Value::Object(map) => Config { path: config_path, map },
        _ => return Err(Error::malformed(config_path, "expected a JSON object")),
    };
    config.refuse_unsupported()?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() {
        return Err(Error::MissingFile {
            folder: folder.to_owned(),
            file: WEIGHTS.into(),
            help:
                "save the adapter with safe_serialization (an adapter_model.bin is not read: it can run code)"
                    .into(),
        });
    }
    let file = SafetensorsFile::open(&weights)?;
    let modules = config.modules(&file)?;
    let name = folder.file_name().map_or_else(|| "adapter".into(), |n| n.to_string_lossy().into_owned());
    Ok(TaskAdapter::new(AdapterInfo { name, path: folder.to_owned(), ..AdapterInfo::default() }, modules))
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
        match self.get("bias").and_then(Value::as_str) {
            None | Some("none") => {}
            Some(other) => {
                return Err(self.unsupported(format!("bias = {other}"), "train with bias = \"none\""));
            }
        }
        if let Some(Value::String(init)) = self.get("init_lora_weights")
            && CHANGED_BASE.iter().any(|name| init.to_lowercase().starts_with(name))
        {
            let help = "it changed the base weights; save it with PEFT's conversion to plain LoRA \
                        (path_initial_model_for_weight_conversion)";
            return Err(self.unsupported(format!("init_lora_weights = {init}"), help));
        }
        Ok(())
    }

    fn positive(&self, key: &str, value: &Value) -> Result<f64> {
        match value.as_f64() {
            Some(v) if v > 0.0 && v.is_finite() => Ok(v),
            _ => Err(Error::malformed(&self.path, format!("{key} = {value}: expected a positive number"))),
        }
    }

    /// `rank_pattern` or `alpha_pattern`, in the file's order: the first key that matches decides.
    fn patterns(&self, key: &str) -> Result<Vec<(Pattern, f64)>> {
        let Some(Value::Object(map)) = self.get(key) else { return Ok(Vec::new()) };
        map.iter().map(|(k, v)| Ok((Pattern::suffix(&self.path, key, k)?, self.positive(key, v)?))).collect()
    }

    /// Pairs A and B of every module and scales them.
    fn modules(&self, file: &SafetensorsFile) -> Result<Modules> {
        let targets = Targets::parse(&self.path, &self.map)?;
        let rank = self.positive("r", self.get("r").unwrap_or(&Value::from(8)))?;
        let alpha = self.positive("lora_alpha", self.get("lora_alpha").unwrap_or(&Value::from(8)))?;
        let ranks = self.patterns("rank_pattern")?;
        let alphas = self.patterns("alpha_pattern")?;
        let stabilised = self.get("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        let chosen = |patterns: &[(Pattern, f64)], module: &str, default: f64| {
            patterns.iter().find(|(p, _)| p.matches(module)).map_or(default, |(_, v)| *v)
        };
        let mut modules = Modules::new();
        for (module, (a, b)) in self.pairs(file)? {
            if !targets.contain(&module) {
                let reason = "is in the file, but the configuration's target_modules do not name its module";
                return Err(Error::tensor(file.path(), &a, reason));
            }
            let branch = Branch {
                kind: BranchKind::Lora,
                scaling: 1.0,
                down: LowRank::Float(file.require(&a)?),
                up: LowRank::Float(file.require(&b)?),
            };
            branch.check()?;
            let configured = chosen(&ranks, &module, rank);
            if branch.rank() as f64 != configured {
                let reason = format!("has rank {}, the configuration says {configured}", branch.rank());
                return Err(Error::tensor(file.path(), &a, reason));
            }
            let alpha = chosen(&alphas, &module, alpha);
            let scaling = if stabilised { alpha / configured.sqrt() } else { alpha / configured };
            modules.entry(module).or_default().push(Branch { scaling: scaling as f32, ..branch });
        }
        Ok(modules)
    }

    /// Module path to the names of its A and B; every other tensor is refused by name.
    fn pairs(&self, file: &SafetensorsFile) -> Result<BTreeMap<String, (String, String)>> {
        let mut found: BTreeMap<String, [Option<String>; 2]> = BTreeMap::new();
        for name in file.names() {
            let path = name.strip_prefix("base_model.model.").unwrap_or(name);
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
        let help = if name.contains("lora_embedding") {
            "LoRA on embeddings is not applied; train on linears only"
        } else if name.contains("lora_magnitude_vector") {
            "it belongs to DoRA; train without use_dora"
        } else if name.ends_with(".bias") {
            "trained biases are not applied; train with bias = \"none\""
        } else {
            "it is no LoRA matrix; whole trained modules (a classification head, say) cannot be swapped with a task"
        };
        self.unsupported(format!("tensor {name}"), help)
    }
}
