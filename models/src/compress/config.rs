//! `config.json` of a compressed folder: the source's, with a `quantization_config` as compressed-tensors 0.20 writes it.

use calora::quant::{Group, Scheme};
use serde_json::{Map, Value, json};

use super::{Action, CompressOptions, Plan};

/// The configuration of the result.
pub(super) fn compressed(source: &Value, options: &CompressOptions, plan: &Plan) -> Value {
    let mut groups = Map::new();
    groups.insert("group_0".into(), group(options.scheme, &["Linear".to_owned()]));
    let others: Vec<String> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Pack { module, scheme, .. } if *scheme != options.scheme => Some(module.clone()),
            _ => None,
        })
        .collect();
    if !others.is_empty() {
        // A module's own path goes before the class `Linear`.
        groups.insert("group_1".into(), group(Scheme { group: Group::Channel, ..options.scheme }, &others));
    }
    // Tied heads have no tensor of their own, but transformers builds a Linear for them.
    let mut ignore = plan.kept.clone();
    if options.ignore.iter().any(|i| i == "lm_head") && !ignore.iter().any(|i| i == "lm_head") {
        ignore.push("lm_head".into());
    }
    let mut config = source.clone();
    config["quantization_config"] = json!({
        "config_groups": groups,
        "format": "pack-quantized",
        "global_compression_ratio": null,
        "ignore": ignore,
        "kv_cache_scheme": null,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.20.0"
    });
    config
}

fn group(scheme: Scheme, targets: &[String]) -> Value {
    let (strategy, size) = match scheme.group {
        Group::Size(size) => ("group", Value::from(size)),
        Group::Channel => ("channel", Value::Null),
    };
    json!({
        "format": "pack-quantized",
        "input_activations": null,
        "output_activations": null,
        "targets": targets,
        "weights": {
            "dynamic": false, "group_size": size, "num_bits": scheme.bits.count(), "strategy": strategy,
            "symmetric": scheme.symmetric, "type": "int"
        }
    })
}
