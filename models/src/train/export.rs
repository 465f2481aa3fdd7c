//! Trained branches as files: a PEFT folder, or a task file.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use calora::adapter::BranchKind;
use calora::arch::Recipe;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use super::branches::{Branch, Branches, Values};

/// One LoRA of a PEFT folder.
struct Lora {
    down: Values,
    up: Values,
    scaling: f32,
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT 0.21 reads them, in float32. Several branches of
/// a linear are written as one: `B (A x)` sums concatenate along the rank. A GELU cannot be folded and is refused.
pub fn peft(path: &Path, recipe: &Recipe, branches: &Branches, base: &Path) -> Result<()> {
    let mut loras = BTreeMap::new();
    for (list, linear) in branches.of.iter().zip(&recipe.linears).filter(|(list, _)| !list.is_empty()) {
        loras.insert(linear.path.as_str(), fold(list)?);
    }
    let Some(first) = loras.values().next() else { bail!("there is nothing to write") };
    let (rank, alpha) = (first.down.rows, first.scaling * first.down.rows as f32);
    let pattern =
        |value: &dyn Fn(&Lora) -> serde_json::Value, usual: serde_json::Value| -> serde_json::Value {
            let other = loras.iter().filter(|(_, lora)| value(lora) != usual);
            other
                .map(|(module, lora)| ((*module).to_owned(), value(lora)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
    let rank_of = |lora: &Lora| json!(lora.down.rows);
    let alpha_of = |lora: &Lora| json!(lora.scaling * lora.down.rows as f32);
    let mut suffixes: Vec<&str> = loras.keys().map(|m| m.rsplit('.').next().unwrap_or(m)).collect();
    suffixes.sort_unstable();
    suffixes.dedup();
    // A LoRA on every module of a name is targeted by the name, as people write it; else module by module.
    let whole = recipe.linears.iter().all(|linear| {
        let named = suffixes.contains(&linear.path.rsplit('.').next().unwrap_or(&linear.path));
        !named || loras.contains_key(linear.path.as_str())
    });
    let targets = if whole { suffixes } else { loras.keys().copied().collect() };
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": true,
        "base_model_name_or_path": base.display().to_string(),
        "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": targets,
        "rank_pattern": pattern(&rank_of, json!(rank)), "alpha_pattern": pattern(&alpha_of, json!(alpha)),
        "use_rslora": false, "use_dora": false, "fan_in_fan_out": false, "modules_to_save": null,
    });
    let mut views = Vec::new();
    for (module, lora) in &loras {
        for (side, values) in [("lora_A", &lora.down), ("lora_B", &lora.up)] {
            let bytes: &[u8] = bytemuck::cast_slice(&values.data);
            let view = TensorView::new(Dtype::F32, vec![values.rows, values.cols], bytes)?;
            views.push((format!("base_model.model.{module}.{side}.weight"), view));
        }
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let bytes = safetensors::serialize(views, Some(metadata))?;
    fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    calora::weights::write_atomically(&path.join("adapter_model.safetensors"), &bytes)?;
    calora::weights::write_atomically(
        &path.join("adapter_config.json"),
        &serde_json::to_vec_pretty(&config)?,
    )?;
    Ok(())
}

/// Several linear branches as one: A and B side by side. One branch keeps its scaling; the scalings of several move into
/// their B.
fn fold(list: &[Branch]) -> Result<Lora> {
    if list.iter().any(|branch| branch.kind == BranchKind::Recovery) {
        bail!("a GELU recovery does not fold into a LoRA; train with --recovery linear to fold");
    }
    if let [one] = list {
        let (down, up) = (Values::read(&one.down)?, Values::read(&one.up)?);
        return Ok(Lora { down, up, scaling: one.scaling });
    }
    let sides: Vec<(Values, Values, f32)> = list
        .iter()
        .map(|b| Ok((Values::read(&b.down)?, Values::read(&b.up)?, b.scaling)))
        .collect::<Result<_>>()?;
    let rank = sides.iter().map(|(down, ..)| down.rows).sum();
    let (cols, rows) = (sides[0].0.cols, sides[0].1.rows);
    let down = sides.iter().flat_map(|(down, ..)| down.data.iter().copied()).collect();
    let mut up = Vec::with_capacity(rows * rank);
    for row in 0..rows {
        for (_, side, scaling) in &sides {
            up.extend(side.data[row * side.cols..(row + 1) * side.cols].iter().map(|v| v * scaling));
        }
    }
    Ok(Lora {
        down: Values { rows: rank, cols, data: down },
        up: Values { rows, cols: rank, data: up },
        scaling: 1.0,
    })
}
