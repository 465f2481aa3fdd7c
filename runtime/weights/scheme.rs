//! `quantization_config` as compressed-tensors writes it, and calora's extension: which module is stored in which
//! scheme.
//!
//! The extension says `"format": "calora-mid-rise"` and, in the weights of groups with two or three bits,
//! `"levels": "mid-rise"` (see [`crate::quant`]); all else is as in compressed-tensors.
//!
//! Invariant: what would change the result and is not computed (activation quantisation, activation order, sparsity,
//! transforms, other formats) is refused by the field's name; nothing is ignored silently.

use std::path::Path;

use regex::Regex;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::quant::{Bits, Group, Scheme};

/// The `format` of folders, and of groups in them, that only calora reads.
const EXTENSION: &str = "calora-mid-rise";

/// A parsed `quantization_config`.
#[derive(Clone, Debug)]
pub struct QuantConfig {
    groups: Vec<(Vec<ModuleTarget>, Scheme)>,
    ignore: Vec<ModuleTarget>,
}

/// What a group or the ignore list names.
#[derive(Clone, Debug)]
pub enum ModuleTarget {
    /// A module path, or the name of a module class.
    Name(String),
    /// `re:`: a pattern that must match from the start of a module path.
    Pattern(Regex),
}

impl ModuleTarget {
    /// Reads a name or a `re:` pattern; the error says what is wrong with the pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(pattern) = text.strip_prefix("re:") else { return Ok(Self::Name(text.to_owned())) };
        // Python's re.match: anchored at the start only.
        match Regex::new(&format!("^(?:{pattern})")) {
            Ok(regex) => Ok(Self::Pattern(regex)),
            Err(e) => Err(format!("cannot read the pattern: {e}")),
        }
    }

    /// Whether this names a module of this path and class (`Linear`, `Embedding`).
    pub fn matches(&self, module: &str, class: &str) -> bool {
        self.matches_path(module) || self.matches_class(class)
    }

    fn matches_path(&self, module: &str) -> bool {
        match self {
            Self::Name(name) => name == module,
            Self::Pattern(regex) => regex.is_match(module),
        }
    }

    fn matches_class(&self, class: &str) -> bool {
        matches!(self, Self::Name(name) if name == class)
    }

    /// How compressed-tensors orders several matching targets: names before patterns, each in order.
    fn rank(&self) -> (bool, &str) {
        match self {
            Self::Name(name) => (false, name),
            Self::Pattern(regex) => (true, regex.as_str()),
        }
    }
}

impl QuantConfig {
    /// Reads `quantization_config` of a `config.json`; nothing where it has none.
    pub fn parse(config: &Value, path: &Path) -> Result<Option<Self>> {
        let key = ["quantization_config", "compression_config"].into_iter().find(|k| !is_null(config, k));
        let Some(key) = key else { return Ok(None) };
        let extended = config[key]["format"].as_str() == Some(EXTENSION);
        let reader = Reader { path, extended };
        let Some(map) = config[key].as_object() else {
            return Err(reader.unsupported(key, &config[key], "expected an object"));
        };
        reader.expect(map, key, "quant_method", &["compressed-tensors"])?;
        reader.expect(map, key, "format", &["pack-quantized", "mixed-precision", EXTENSION])?;
        if map.contains_key("quantization_status") {
            reader.expect(map, key, "quantization_status", &["compressed"])?;
        }
        for field in ["kv_cache_scheme", "transform_config", "moe_sparsity_config"] {
            reader.refuse(map, key, field)?;
        }
        // Older writers spell "no sparsity" as the format `dense`.
        if map.get("sparsity_config").is_none_or(|s| s["format"].as_str() != Some("dense")) {
            reader.refuse(map, key, "sparsity_config")?;
        }
        let mut groups = Vec::new();
        let listed = map.get("config_groups").and_then(Value::as_object);
        for (name, group) in
            listed.ok_or_else(|| Error::malformed(path, format!("{key} has no config_groups")))?
        {
            let field = format!("{key}.config_groups.{name}");
            let Some(group) = group.as_object() else {
                return Err(reader.unsupported(&field, group, "presets are not read, spell the scheme out"));
            };
            if !is_absent(group.get("format")) {
                let allowed = ["pack-quantized", EXTENSION];
                reader.expect(group, &field, "format", &allowed[..1 + usize::from(extended)])?;
            }
            reader.refuse(group, &field, "input_activations")?;
            reader.refuse(group, &field, "output_activations")?;
            let targets = reader.targets(group.get("targets"), &format!("{field}.targets"))?;
            if let Some(weights) = group.get("weights").filter(|w| !w.is_null()) {
                let field = format!("{field}.weights");
                let Some(weights) = weights.as_object() else {
                    return Err(reader.unsupported(&field, weights, "expected an object"));
                };
                groups.push((targets, reader.scheme(weights, &field)?));
            }
        }
        let ignore = match map.get("ignore") {
            None | Some(Value::Null) => Vec::new(),
            list => reader.targets(list, &format!("{key}.ignore"))?,
        };
        Ok(Some(Self { groups, ignore }))
    }

    /// The scheme of a module by its path and class (`Linear`, `Embedding`); nothing where it is stored dense. Several
    /// matching targets are ranked as in compressed-tensors: paths, then patterns, then classes, each in order of name.
    pub fn scheme(&self, module: &str, class: &str) -> Option<Scheme> {
        if self.ignore.iter().any(|t| t.matches(module, class)) {
            return None;
        }
        let targets =
            || self.groups.iter().flat_map(|(targets, scheme)| targets.iter().map(move |t| (t, *scheme)));
        let by_path = targets().filter(|(t, _)| t.matches_path(module)).min_by_key(|(t, _)| t.rank());
        by_path.or_else(|| targets().find(|(t, _)| t.matches_class(class))).map(|(_, scheme)| scheme)
    }
}

fn is_absent(value: Option<&Value>) -> bool {
    value.is_none_or(Value::is_null)
}

fn is_null(config: &Value, key: &str) -> bool {
    is_absent(config.get(key))
}

/// Makes errors that name the file and the field.
struct Reader<'a> {
    path: &'a Path,
    /// Whether two and three bits may be there.
    extended: bool,
}

impl Reader<'_> {
    fn unsupported(&self, field: &str, value: &Value, reason: &str) -> Error {
        Error::UnsupportedConfig {
            path: self.path.to_owned(),
            field: field.to_owned(),
            value: value.to_string(),
            reason: reason.to_owned(),
        }
    }

    /// The field must be one of these strings.
    fn expect(&self, map: &Map<String, Value>, parent: &str, field: &str, allowed: &[&str]) -> Result<()> {
        let value = map.get(field).unwrap_or(&Value::Null);
        match value.as_str() {
            Some(text) if allowed.contains(&text) => Ok(()),
            _ => {
                let reason = format!("only {} is read", allowed.join(" or "));
                Err(self.unsupported(&format!("{parent}.{field}"), value, &reason))
            }
        }
    }

    /// The field must be absent, null, false or empty.
    fn refuse(&self, map: &Map<String, Value>, parent: &str, field: &str) -> Result<()> {
        match map.get(field) {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(Value::Object(map)) if map.is_empty() => Ok(()),
            Some(Value::Array(list)) if list.is_empty() => Ok(()),
            Some(value) => {
                Err(self.unsupported(&format!("{parent}.{field}"), value, "it would change the result"))
            }
        }
    }

    fn targets(&self, list: Option<&Value>, field: &str) -> Result<Vec<ModuleTarget>> {
        let list = list.unwrap_or(&Value::Null);
        let Some(items) = list.as_array() else {
            return Err(self.unsupported(field, list, "expected a list of names"));
        };
        items
            .iter()
            .map(|item| {
                let text = item.as_str().ok_or_else(|| self.unsupported(field, item, "expected a name"))?;
                ModuleTarget::parse(text).map_err(|reason| self.unsupported(field, item, &reason))
            })
            .collect()
    }

    fn scheme(&self, weights: &Map<String, Value>, field: &str) -> Result<Scheme> {
        let get = |name: &str| weights.get(name).unwrap_or(&Value::Null);
        let at = |name: &str| format!("{field}.{name}");
        let bits = get("num_bits").as_u64().and_then(Bits::from_count);
        let bits = bits.filter(|bits| self.extended || !bits.is_mid_rise()).ok_or_else(|| {
            let reason = if self.extended {
                "only 2, 3, 4 and 8 are read".to_owned()
            } else {
                format!("only 4 and 8 are read (2 and 3 in the format {EXTENSION})")
            };
            self.unsupported(&at("num_bits"), get("num_bits"), &reason)
        })?;
        if bits.is_mid_rise() {
            self.expect(weights, field, "levels", &["mid-rise"])?;
        } else {
            self.refuse(weights, field, "levels")?;
        }
        if !get("type").is_null() {
            self.expect(weights, field, "type", &["int"])?;
        }
        self.refuse(weights, field, "dynamic")?;
        self.refuse(weights, field, "block_structure")?;
        if !matches!(get("actorder"), Value::Null | Value::Bool(false)) {
            // These only changed the order in which a calibration visited the columns, not what is stored.
            self.expect(weights, field, "actorder", &["weight", "static"])?;
        }
        let symmetric = match get("symmetric") {
            Value::Null => true,
            Value::Bool(b) => *b,
            other => return Err(self.unsupported(&at("symmetric"), other, "expected true or false")),
        };
        if bits.is_mid_rise() && !symmetric {
            return Err(self.unsupported(
                &at("symmetric"),
                get("symmetric"),
                "mid-rise levels are symmetric",
            ));
        }
        let size = get("group_size");
        let strategy = match (get("strategy").as_str(), size.as_i64()) {
            (Some(strategy), _) => strategy,
            (None, Some(-1)) => "channel",
            (None, Some(_)) => "group",
            (None, None) => "tensor",
        };
        let group = match strategy {
            "channel" => Group::Channel,
            "group" => match size.as_u64() {
                Some(size) if size > 0 && size % 32 == 0 && size <= 1 << 20 => Group::Size(size as usize),
                _ => return Err(self.unsupported(&at("group_size"), size, "expected a multiple of 32")),
            },
            other => {
                let reason = "only group and channel are read";
                return Err(self.unsupported(&at("strategy"), &Value::from(other), reason));
            }
        };
        Ok(Scheme { bits, group, symmetric })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn config() -> Value {
        json!({"quantization_config": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {},
        "ignore": ["lm_head", "re:.*layers\\.1\\.mlp.*"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "input_activations": null, "weights":
                {"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32,
                 "dynamic": false, "actorder": null}},
            "group_1": {"targets": ["model.layers.0.mlp.down_proj", "re:.*v_proj$"], "weights":
                {"num_bits": 8, "type": "int", "symmetric": false, "strategy": "channel", "dynamic": false}}
        }}})
    }

    fn parse(config: &Value) -> Result<Option<QuantConfig>> {
        QuantConfig::parse(config, Path::new("config.json"))
    }

    #[test]
    fn targets_are_ranked_as_in_compressed_tensors() {
        let parsed = parse(&config()).unwrap().unwrap();
        let int4 = Scheme { bits: Bits::Int4, group: Group::Size(32), symmetric: true };
        let int8 = Scheme { bits: Bits::Int8, group: Group::Channel, symmetric: false };
        for (module, class, expected) in [
            ("model.layers.0.self_attn.q_proj", "Linear", Some(int4)),
            ("model.layers.0.mlp.down_proj", "Linear", Some(int8)),
            ("model.layers.3.self_attn.v_proj", "Linear", Some(int8)),
            ("model.layers.1.mlp.down_proj", "Linear", None),
            ("lm_head", "Linear", None),
            ("model.embed_tokens", "Embedding", None),
        ] {
            assert_eq!(parsed.scheme(module, class), expected, "{module}");
        }
        assert!(parse(&json!({"hidden_size": 3})).unwrap().is_none());
    }

    #[test]
    fn the_extension_reads_two_and_three_bits_beside_four_and_eight() {
        let with = |weights: Value| {
            let mut changed = config();
            changed["quantization_config"]["format"] = json!("calora-mid-rise");
            let group = &mut changed["quantization_config"]["config_groups"]["group_0"]["weights"];
            for (key, value) in weights.as_object().unwrap() {
                group[key] = value.clone();
            }
            parse(&changed)
        };
        for (count, bits) in [(2, Bits::Int2), (3, Bits::Int3)] {
            let parsed = with(json!({"num_bits": count, "levels": "mid-rise"})).unwrap().unwrap();
            let scheme = Scheme { bits, group: Group::Size(32), symmetric: true };
            assert_eq!(parsed.scheme("model.layers.0.self_attn.q_proj", "Linear"), Some(scheme));
            let other = parsed.scheme("model.layers.0.mlp.down_proj", "Linear").unwrap();
            assert_eq!(other, Scheme { bits: Bits::Int8, group: Group::Channel, symmetric: false });
        }
        for (weights, refused) in [
            (json!({"num_bits": 2}), "levels"),
            (json!({"num_bits": 2, "levels": "signed"}), "levels"),
            (json!({"num_bits": 2, "levels": "mid-rise", "symmetric": false}), "symmetric"),
            (json!({"num_bits": 4, "levels": "mid-rise"}), "levels"),
            (json!({"num_bits": 5, "levels": "mid-rise"}), "num_bits"),
        ] {
            let Err(Error::UnsupportedConfig { field, .. }) = with(weights.clone()) else {
                unreachable!("{weights} was accepted")
            };
            assert!(field.ends_with(refused), "{weights} was refused as {field}");
        }
    }

    #[test]
    fn what_changes_the_result_is_refused_by_name() {
        let group = "/quantization_config/config_groups/group_0";
        for (pointer, key, value) in [
            ("/quantization_config", "quant_method", json!("gptq")),
            ("/quantization_config", "format", json!("float-quantized")),
            ("/quantization_config", "quantization_status", json!("frozen")),
            ("/quantization_config", "kv_cache_scheme", json!({"num_bits": 8})),
            ("/quantization_config", "sparsity_config", json!({"format": "sparse-24-bitmask"})),
            ("/quantization_config", "transform_config", json!({"config_groups": {"a": 1}})),
            (group, "format", json!("int-quantized")),
            (group, "input_activations", json!({"num_bits": 8})),
            (group, "output_activations", json!({"num_bits": 8})),
            (group, "weights.num_bits", json!(3)),
            (group, "weights.num_bits", json!(2)),
            (group, "weights.levels", json!("mid-rise")),
            (group, "weights.type", json!("float")),
            (group, "weights.strategy", json!("tensor")),
            (group, "weights.group_size", json!(24)),
            (group, "weights.dynamic", json!(true)),
            (group, "weights.actorder", json!("group")),
            (group, "weights.block_structure", json!([128, 128])),
            (group, "weights.symmetric", json!("yes")),
            (group, "targets", json!(["re:(?!lm_head).*"])),
        ] {
            let mut changed = config();
            let mut at = changed.pointer_mut(pointer).unwrap();
            for part in key.split('.') {
                at = &mut at[part];
            }
            *at = value;
            let Err(Error::UnsupportedConfig { field, .. }) = parse(&changed) else {
                unreachable!("{key} was accepted")
            };
            assert!(field.ends_with(key), "{key} was refused as {field}");
        }
        for inert in [json!({"format": "dense"}), json!(null), json!({})] {
            let mut changed = config();
            changed["quantization_config"]["sparsity_config"] = inert;
            assert!(parse(&changed).is_ok());
        }
    }
}
