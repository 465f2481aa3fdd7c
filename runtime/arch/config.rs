//! `config.json` of the Llama family: the fields that shape the computation, and a refusal by name of every field that
//! would change the result and is not supported.
//!
//! Both spellings are read: `rope_theta` + `rope_scaling` (before transformers 5) and `rope_parameters`.

use std::path::Path;

use serde_json::{Map, Value};

use super::recipe::ModelShape;
use crate::error::{Error, Result};

/// Scaling of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Plain,
    /// Llama 3.1's: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high.
        high_freq_factor: f64,
        /// The context the model was first trained for.
        original: f64,
    },
}

/// A validated Llama configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Dimensions.
    pub shape: ModelShape,
    /// Added to the mean square in RMS norms.
    pub norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their scaling.
    pub rope_scaling: RopeScaling,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
}

/// Fields that would change the result; each with the values that leave it as calora computes it.
const INERT: &[(&str, &[&str])] = &[
    ("hidden_act", &["\"silu\"", "\"swish\""]),
    ("partial_rotary_factor", &["1", "1.0"]),
    ("sliding_window", &["null"]),
    ("use_sliding_window", &["false"]),
    ("attn_logit_softcapping", &["null"]),
    ("final_logit_softcapping", &["null"]),
    ("query_pre_attn_scalar", &["null"]),
    ("logits_scaling", &["1", "1.0"]),
    ("logit_scale", &["1", "1.0"]),
    ("residual_multiplier", &["1", "1.0"]),
    ("embedding_multiplier", &["1", "1.0"]),
    ("attention_multiplier", &["null"]),
    ("no_rope_layers", &["null", "[]"]),
    ("no_rope_layer_interval", &["null"]),
    ("layer_types", &["null"]),
    ("num_local_experts", &["null"]),
    ("num_experts", &["null"]),
    ("qk_norm", &["false"]),
    ("use_qk_norm", &["false"]),
    ("clip_qkv", &["null"]),
    ("qkv_bias", &["false"]),
    ("use_bias", &["false"]),
];

/// A reader of one JSON object that knows its file.
struct Fields<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn unsupported(&self, field: &str, value: &Value, reason: impl Into<String>) -> Error {
        Error::UnsupportedConfig {
            path: self.path.to_owned(),
            field: field.to_owned(),
            value: value.to_string(),
            reason: reason.into(),
        }
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|v| !v.is_null())
    }

    fn count_or(&self, field: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(field), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Error::malformed(self.path, format!("{field} is missing"))),
            (Some(value), _) => match value.as_u64() {
                // Far above any model, far below an overflow in a product of two.
                Some(n) if (1..=1 << 28).contains(&n) => Ok(n as usize),
                _ => Err(self.unsupported(field, value, "expected a positive whole number")),
            },
        }
    }

    fn number_or(&self, field: &str, default: Option<f64>) -> Result<f64> {
        match (self.get(field), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(Error::malformed(self.path, format!("{field} is missing"))),
            (Some(value), _) => match value.as_f64() {
                Some(n) if n > 0.0 && n.is_finite() => Ok(n),
                _ => Err(self.unsupported(field, value, "expected a positive number")),
            },
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool> {
        match self.get(field) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(value) => Err(self.unsupported(field, value, "expected true or false")),
        }
    }
}

impl LlamaConfig {
    /// Reads a configuration; `path` is only used in errors.
    pub fn parse(config: &Value, path: &Path) -> Result<Self> {
        let Value::Object(map) = config else {
            return Err(Error::malformed(path, "expected a JSON object"));
        };
        let f = Fields { path, map };
        for (field, inert) in INERT {
            if let Some(value) = f.get(field)
                && !inert.contains(&value.to_string().as_str())
            {
                return Err(f.unsupported(field, value, format!("only {} is computed", inert.join(" or "))));
            }
        }
        let hidden = f.count_or("hidden_size", None)?;
        let heads = f.count_or("num_attention_heads", None)?;
        let shape = ModelShape {
            hidden,
            mlp: f.count_or("intermediate_size", None)?,
            layers: f.count_or("num_hidden_layers", None)?,
            heads,
            kv_heads: f.count_or("num_key_value_heads", Some(heads))?,
            head_dim: match f.get("head_dim") {
                None if !hidden.is_multiple_of(heads) => {
                    let value = Value::from(hidden);
                    return Err(f.unsupported(
                        "hidden_size",
                        &value,
                        format!("is not a multiple of {heads} heads"),
                    ));
                }
                _ => f.count_or("head_dim", Some(hidden / heads))?,
            },
            vocab: f.count_or("vocab_size", None)?,
            context: f.count_or("max_position_embeddings", Some(2048))?,
        };
        if !shape.heads.is_multiple_of(shape.kv_heads) {
            let value = Value::from(shape.kv_heads);
            return Err(f.unsupported(
                "num_key_value_heads",
                &value,
                format!("does not divide {heads} heads"),
            ));
        }
        if !shape.head_dim.is_multiple_of(2) {
            let value = Value::from(shape.head_dim);
            return Err(f.unsupported("head_dim", &value, "rotary pairs need an even head size"));
        }
        let (rope_theta, rope_scaling) = rope(&f)?;
        Ok(Self {
            shape,
            norm_eps: f.number_or("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta,
            rope_scaling,
            attention_bias: f.flag("attention_bias", false)?,
            mlp_bias: f.flag("mlp_bias", false)?,
            tied: f.flag("tie_word_embeddings", false)?,
        })
    }

    /// (D/2) angles per position, scaled; formula of Llama 3.1 as in its reference implementation.
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let d = self.shape.head_dim;
        let plain = (0..d / 2).map(|i| self.rope_theta.powf(-((2 * i) as f64) / d as f64));
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } = self.rope_scaling
        else {
            return plain.collect();
        };
        plain
            .map(|frequency| {
                let wavelength = 2.0 * std::f64::consts::PI / frequency;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth =
                        (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })
            .collect()
    }
}

/// Theta and scaling from either spelling.
fn rope(f: &Fields<'_>) -> Result<(f64, RopeScaling)> {
    let theta = f.number_or("rope_theta", Some(10_000.0))?;
    let Some((field, value)) = ["rope_parameters", "rope_scaling"].iter().find_map(|k| Some((*k, f.get(k)?)))
    else {
        return Ok((theta, RopeScaling::Plain));
    };
    let Value::Object(map) = value else {
        return Err(f.unsupported(field, value, "expected an object"));
    };
    let r = Fields { path: f.path, map };
    let theta = r.number_or("rope_theta", Some(theta))?;
    if let Some(partial) = r.get("partial_rotary_factor")
        && partial.as_f64() != Some(1.0)
    {
        return Err(r.unsupported("partial_rotary_factor", partial, "only whole heads are rotated"));
    }
    let kind = r.get("rope_type").or_else(|| r.get("type"));
    let scaling = match kind.and_then(Value::as_str) {
        Some("default") | None => RopeScaling::Plain,
        Some("llama3") => RopeScaling::Llama3 {
            factor: r.number_or("factor", None)?,
            low_freq_factor: r.number_or("low_freq_factor", None)?,
            high_freq_factor: r.number_or("high_freq_factor", None)?,
            original: r.number_or("original_max_position_embeddings", None)?,
        },
        Some(_) => {
            return Err(f.unsupported(
                &format!("{field}.rope_type"),
                kind.unwrap_or(&Value::Null),
                "supported are default and llama3",
            ));
        }
    };
    if let RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. } = scaling
        && high_freq_factor <= low_freq_factor
    {
        return Err(f.unsupported(field, value, "high_freq_factor must be above low_freq_factor"));
    }
    Ok((theta, scaling))
}
