//! A canonical form of `config.json`: equal for spellings that compute the same, whatever wrote them.
//!
//! Fields are left out by name, never let in by name, so that two configurations that differ in a field unknown today
//! never share an id. Invariant: part of the id's definition; changing it changes every id.

use serde_json::{Map, Number, Value};

/// Fields that say nothing of the forward pass.
const INERT: &[&str] = &[
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "architectures",
    "attention_dropout",
    "attn_pdrop",
    "auto_map",
    "bos_token_id",
    "compression_config",
    "dtype",
    "embd_pdrop",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "keys_to_ignore_at_inference",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "quantization_config",
    "resid_pdrop",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

/// The fields that change the result, sorted, defaults spelled out, both spellings of rotary settings as one.
pub(super) fn canonical(config: &Value) -> Value {
    let empty = Map::new();
    let config = config.as_object().unwrap_or(&empty);
    let mut out = Map::new();
    for (key, value) in config {
        // Nulls and false stand for absent fields. (Absent is true for tied weights in some families: kept as written.)
        let absent = value.is_null() || (*value == Value::Bool(false) && key != "tie_word_embeddings");
        let rope = ["rope_theta", "rope_scaling", "rope_parameters"].contains(&key.as_str());
        if !absent && !rope && !INERT.contains(&key.as_str()) {
            out.insert(key.clone(), value.clone());
        }
    }
    let count = |key: &str| config.get(key).and_then(Value::as_u64);
    if let (Some(hidden), Some(heads)) = (count("hidden_size"), count("num_attention_heads")) {
        out.entry("num_key_value_heads").or_insert(heads.into());
        if heads > 0 && hidden % heads == 0 {
            out.entry("head_dim").or_insert((hidden / heads).into());
        }
    }
    let rope = rope(config);
    if !rope.is_empty() {
        out.insert("rope".into(), rope.into());
    }
    if let Some(schemes) = schemes(config) {
        out.insert("schemes".into(), schemes);
    }
    sorted(&Value::Object(out))
}

/// Rotary settings of either spelling.
fn rope(config: &Map<String, Value>) -> Map<String, Value> {
    let settings = ["rope_parameters", "rope_scaling"].iter().find_map(|key| config.get(*key)?.as_object());
    let mut rope = settings.cloned().unwrap_or_default();
    if let Some(theta) = config.get("rope_theta").filter(|t| !t.is_null()) {
        rope.entry("rope_theta").or_insert(theta.clone());
    }
    if let Some(kind) = rope.remove("type") {
        rope.entry("rope_type").or_insert(kind);
    }
    if rope.get("rope_type").and_then(Value::as_str) == Some("default") {
        rope.remove("rope_type");
    }
    rope.retain(|_, value| !value.is_null());
    rope
}

/// How packed tensors are to be read: the weights part of every group with its targets, and what is left out.
fn schemes(config: &Map<String, Value>) -> Option<Value> {
    let quantization = config.get("quantization_config").or_else(|| config.get("compression_config"))?;
    let groups = quantization.get("config_groups")?.as_object()?;
    let mut list: Vec<String> = groups
        .values()
        .map(|group| {
            let mut scheme = Map::new();
            for key in ["num_bits", "group_size", "strategy", "symmetric", "levels"] {
                scheme.insert(key.into(), group["weights"][key].clone());
            }
            scheme.insert("targets".into(), names(&group["targets"]));
            sorted(&scheme.into()).to_string()
        })
        .collect();
    list.sort();
    let mut out = Map::new();
    out.insert("groups".into(), list.into());
    out.insert("ignore".into(), names(&quantization["ignore"]));
    Some(out.into())
}

/// A list of names in order.
fn names(list: &Value) -> Value {
    let mut names: Vec<String> = list.as_array().into_iter().flatten().map(Value::to_string).collect();
    names.sort();
    names.into()
}

/// Objects by key, nulls left out, whole numbers without a fraction.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().filter(|(_, v)| !v.is_null()).collect();
            entries.sort_by_key(|(key, _)| *key);
            entries.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        Value::Number(n) => match n.as_f64() {
            Some(f) if f.fract() == 0.0 && f.abs() < 9e15 => Number::from(f as i64).into(),
            _ => value.clone(),
        },
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spellings_that_compute_the_same_are_equal() {
        let old = json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rope_theta": 10000.0,
            "rope_scaling": null, "torch_dtype": "float32", "transformers_version": "4.40", "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false, "_name_or_path": "x"});
        let new = json!({"rms_norm_eps": 0.00001, "model_type": "llama", "head_dim": 16, "num_key_value_heads": 4,
            "attention_bias": false, "mlp_bias": false, "hidden_size": 64, "num_attention_heads": 4, "dtype": "bfloat16",
            "tie_word_embeddings": false, "pad_token_id": null,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000}});
        assert_eq!(canonical(&old).to_string(), canonical(&new).to_string());
    }

    #[test]
    fn every_field_that_matters_moves_it() {
        let base = json!({"hidden_size": 64, "num_attention_heads": 4, "rope_theta": 10000.0, "tie_word_embeddings": true,
            "quantization_config": {"config_groups": {"g": {"targets": ["Linear"], "weights":
                {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": true}}}, "ignore": ["lm_head"]}});
        for (pointer, value) in [
            ("/hidden_size", json!(128)),
            ("/rope_theta", json!(500000.0)),
            ("/tie_word_embeddings", json!(false)),
            ("/quantization_config/config_groups/g/weights/symmetric", json!(false)),
            ("/quantization_config/config_groups/g/weights/num_bits", json!(8)),
            ("/quantization_config/config_groups/g/weights/levels", json!("mid-rise")),
            ("/quantization_config/config_groups/g/targets", json!(["model.x"])),
            ("/quantization_config/ignore", json!([])),
        ] {
            let mut changed = base.clone();
            if let Some((parent, key)) = pointer.rsplit_once('/')
                && let Some(at) = changed.pointer_mut(parent)
            {
                at[key] = value;
            }
            assert_ne!(canonical(&base), canonical(&changed), "{pointer}");
        }
        let mut changed = base.clone();
        changed["a_field_of_tomorrow"] = json!(3);
        assert_ne!(canonical(&base), canonical(&changed));
    }
}
