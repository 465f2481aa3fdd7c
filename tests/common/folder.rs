//! Random models as Hugging Face folders, stored as any scheme that is read.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::borrow::Cow;
use std::path::Path;

use calora::device::Model;
use calora::quant::{Group, Scheme};
use calora::weights::{DType, Storage, Tensor};
use safetensors::tensor::{Dtype, View, serialize_to_file};
use serde_json::{Value, json};

struct Bytes(Dtype, Vec<usize>, Vec<u8>);

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        self.0
    }
    fn shape(&self) -> &[usize] {
        &self.1
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.2)
    }
    fn data_len(&self) -> usize {
        self.2.len()
    }
}

fn bytes(tensor: &Tensor) -> Bytes {
    let dtype = match tensor.dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I8 => Dtype::I8,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
    };
    Bytes(dtype, tensor.shape.clone(), tensor.bytes().to_vec())
}

/// Writes a model that was made from `config`; linears of one scheme, everything else dense.
pub fn write(model: &Model, config: &Value, folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut tensors = Vec::new();
    let mut used = None;
    for (spec, matrix) in model.recipe.matrices.iter().zip(&model.weights.matrices) {
        match &matrix.storage {
            Storage::Dense(tensor) => tensors.push((format!("{}.weight", spec.path), bytes(tensor))),
            Storage::Packed { scheme, words, scales, zero_points } => {
                used = Some(*scheme);
                let shape = [spec.rows as i64, spec.cols as i64];
                let shape: Vec<u8> = shape.iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push((format!("{}.weight_packed", spec.path), bytes(words)));
                tensors.push((format!("{}.weight_scale", spec.path), bytes(scales)));
                tensors.push((format!("{}.weight_shape", spec.path), Bytes(Dtype::I64, vec![2], shape)));
                if let Some(zeros) = zero_points {
                    tensors.push((format!("{}.weight_zero_point", spec.path), bytes(zeros)));
                }
            }
        }
    }
    for (spec, values) in model.recipe.vectors.iter().zip(&model.weights.vectors) {
        let values = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        tensors.push((spec.name.clone(), Bytes(Dtype::F32, vec![spec.len], values)));
    }
    let mut config = config.clone();
    if let Some(scheme) = used {
        config["quantization_config"] = quantization(scheme);
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    serialize_to_file(tensors, None, &folder.join("model.safetensors")).unwrap();
}

fn quantization(scheme: Scheme) -> Value {
    let mid_rise = scheme.bits.is_mid_rise();
    let (strategy, size) = match scheme.group {
        Group::Size(size) => ("group", json!(size)),
        Group::Channel => ("channel", Value::Null),
    };
    json!({
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": [],
        "format": if mid_rise { "calora-mid-rise" } else { "pack-quantized" },
        "config_groups": {"group_0": {
            "targets": ["Linear"], "input_activations": null, "output_activations": null,
            "weights": {"num_bits": scheme.bits.count(), "type": "int", "strategy": strategy, "group_size": size,
                        "symmetric": scheme.symmetric, "dynamic": false,
                        "levels": if mid_rise { json!("mid-rise") } else { Value::Null }}
        }}
    })
}
