//! Configurations: what is accepted, and that everything else is refused by the name of the field.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use calora::arch::{self, config::LlamaConfig, config::RopeScaling};
use common::small_config;
use serde_json::{Value, json};

fn refused(field: &str, value: Value) -> String {
    let mut config = small_config();
    config[field] = value;
    match arch::recipe(&config, Path::new("some/config.json")) {
        Ok(_) => panic!("{field} was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn fields_that_change_the_result_are_refused_by_name() {
    let cases = [
        ("model_type", json!("mamba")),
        ("hidden_act", json!("gelu")),
        ("sliding_window", json!(4096)),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
        ("partial_rotary_factor", json!(0.5)),
        ("residual_multiplier", json!(0.22)),
        ("logits_scaling", json!(8.0)),
        ("num_local_experts", json!(8)),
        ("num_key_value_heads", json!(3)),
        ("head_dim", json!(15)),
        ("hidden_size", json!(0)),
        ("vocab_size", json!(-5)),
        ("rms_norm_eps", json!("small")),
        ("attention_bias", json!("yes")),
    ];
    for (field, value) in cases {
        let message = refused(field, value.clone());
        assert!(message.contains(field) && message.contains("some/config.json"), "{field}: {message}");
    }
    let message = refused("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}));
    assert!(message.contains("rope_scaling.rope_type") && message.contains("yarn"), "{message}");
    let message = refused("rope_scaling", json!({"rope_type": "llama3", "factor": 4.0}));
    assert!(message.contains("low_freq_factor"), "{message}");
}

#[test]
fn harmless_spellings_are_accepted() {
    for (field, value) in [
        ("sliding_window", Value::Null),
        ("rope_scaling", Value::Null),
        ("pretraining_tp", json!(1)),
        ("attention_dropout", json!(0.1)),
        ("partial_rotary_factor", json!(1.0)),
        ("something_new", json!({"a": 1})),
    ] {
        let mut config = small_config();
        config[field] = value;
        arch::recipe(&config, Path::new("config.json")).unwrap();
    }
}

#[test]
fn both_spellings_of_rope_mean_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let mut old = small_config();
    old["rope_theta"] = json!(500000.0);
    old["rope_scaling"] = scaling.clone();
    let mut new = small_config();
    new["rope_theta"] = Value::Null;
    new["rope_parameters"] = scaling;
    new["rope_parameters"]["rope_theta"] = json!(500000.0);
    let path = Path::new("config.json");
    let (old, new) = (LlamaConfig::parse(&old, path).unwrap(), LlamaConfig::parse(&new, path).unwrap());
    assert_eq!(old, new);
    assert!(matches!(old.rope_scaling, RopeScaling::Llama3 { .. }));
    let plain = LlamaConfig { rope_scaling: RopeScaling::Plain, ..old.clone() };
    assert_ne!(old.inverse_frequencies(), plain.inverse_frequencies());
}

#[test]
fn real_configurations_parse_or_are_refused_by_name() {
    let Some(data) = common::test_data("real config.json files") else { return };
    let recipe = |name: &str| {
        let path = data.join("configs").join(name).join("config.json");
        let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        arch::recipe(&config, &path)
    };
    for (name, layers, kv_heads) in [
        ("llama-3-8b-instruct", 32, 8),
        ("llama-3.2-1b-instruct", 16, 8),
        ("llama-3.2-1b-bnb-int8", 16, 8),
        ("llama-3.2-3b-instruct", 28, 8),
        ("smollm2-360m-derived", 32, 5),
        ("tinyllama-1.1b-chat", 22, 4),
    ] {
        let recipe = recipe(name).unwrap();
        assert_eq!((recipe.shape.layers, recipe.shape.kv_heads), (layers, kv_heads), "{name}");
    }
    for name in ["gemma-2-2b-it", "gemma-3-1b-it", "qwen3-1.7b", "phi-3.5-mini-instruct"] {
        let message = recipe(name).unwrap_err().to_string();
        assert!(message.contains("model_type"), "{name}: {message}");
    }
}
