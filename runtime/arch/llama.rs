//! The Llama recipe: pre-norm decoder layers of grouped-query attention and a gated MLP.
//!
//! The template for further architectures: read the configuration, declare tensors, list steps.

use std::path::Path;

use serde_json::Value;

use super::config::LlamaConfig;
use super::recipe::{
    Activation, Linear, LinearId, MatrixId, MatrixSpec, Output, Recipe, Rope, Slot, Step, VectorId,
    VectorSpec,
};
use crate::error::Result;

/// Reads `config.json` of a Llama and lists its tensors and steps; `path` is only used in errors.
pub fn recipe(config: &Value, path: &Path) -> Result<Recipe> {
    Ok(build(&LlamaConfig::parse(config, path)?))
}

/// The recipe of a validated configuration.
pub fn build(config: &LlamaConfig) -> Recipe {
    let shape = &config.shape;
    let (hidden, mlp) = (shape.hidden, shape.mlp);
    let (query, kv) = (shape.width(Slot::Query), shape.width(Slot::Key));
    let mut b = Builder::default();
    let embedding = b.matrix("model.embed_tokens", shape.vocab, hidden);
    let mut steps = vec![Step::Embed { table: embedding }];
    for layer in 0..shape.layers {
        let module = |name: &str| format!("model.layers.{layer}.{name}");
        let attention = |b: &mut Builder, name: &str, rows, cols| {
            b.linear(module(&format!("self_attn.{name}_proj")), rows, cols, config.attention_bias)
        };
        let dense = |b: &mut Builder, name: &str, rows, cols| {
            b.linear(module(&format!("mlp.{name}_proj")), rows, cols, config.mlp_bias)
        };
        let norm = b.vector(module("input_layernorm.weight"), hidden);
        let qkv = vec![
            attention(&mut b, "q", query, hidden),
            attention(&mut b, "k", kv, hidden),
            attention(&mut b, "v", kv, hidden),
        ];
        steps.push(Step::Project {
            norm: Some(norm),
            input: Slot::Residual,
            linears: qkv,
            output: Output::Store(vec![Slot::Query, Slot::Key, Slot::Value]),
        });
        steps.push(Step::Attend { layer });
        steps.push(Step::Project {
            norm: None,
            input: Slot::Attended,
            linears: vec![attention(&mut b, "o", hidden, query)],
            output: Output::AddToResidual,
        });
        let norm = b.vector(module("post_attention_layernorm.weight"), hidden);
        let gate_up = vec![dense(&mut b, "gate", mlp, hidden), dense(&mut b, "up", mlp, hidden)];
        steps.push(Step::Project {
            norm: Some(norm),
            input: Slot::Residual,
            linears: gate_up,
            output: Output::Gated(Activation::Silu),
        });
        steps.push(Step::Project {
            norm: None,
            input: Slot::Gated,
            linears: vec![dense(&mut b, "down", hidden, mlp)],
            output: Output::AddToResidual,
        });
    }
    let norm = b.vector("model.norm.weight".into(), hidden);
    let head = if config.tied {
        // Stored under either name; the pair of names is tried for the one matrix.
        b.matrices[embedding.0].alias = Some("lm_head".into());
        embedding
    } else {
        b.matrix("lm_head", shape.vocab, hidden)
    };
    let head = b.add_linear("lm_head".into(), head, None);
    steps.push(Step::Project {
        norm: Some(norm),
        input: Slot::Residual,
        linears: vec![head],
        output: Output::Store(vec![Slot::Logits]),
    });
    Recipe {
        architecture: "llama".into(),
        shape: shape.clone(),
        norm_eps: config.norm_eps,
        rope: Rope { inverse_frequencies: config.inverse_frequencies() },
        matrices: b.matrices,
        vectors: b.vectors,
        linears: b.linears,
        steps,
    }
}

/// Hands out ids while tensors are declared.
#[derive(Default)]
struct Builder {
    matrices: Vec<MatrixSpec>,
    vectors: Vec<VectorSpec>,
    linears: Vec<Linear>,
}

impl Builder {
    fn matrix(&mut self, path: &str, rows: usize, cols: usize) -> MatrixId {
        self.matrices.push(MatrixSpec { path: path.to_owned(), alias: None, rows, cols });
        MatrixId(self.matrices.len() - 1)
    }

    fn vector(&mut self, name: String, len: usize) -> VectorId {
        self.vectors.push(VectorSpec { name, len });
        VectorId(self.vectors.len() - 1)
    }

    fn add_linear(&mut self, path: String, matrix: MatrixId, bias: Option<VectorId>) -> LinearId {
        self.linears.push(Linear { path, matrix, bias });
        LinearId(self.linears.len() - 1)
    }

    fn linear(&mut self, path: String, rows: usize, cols: usize, bias: bool) -> LinearId {
        let matrix = self.matrix(&path, rows, cols);
        let bias = bias.then(|| self.vector(format!("{path}.bias"), rows));
        self.add_linear(path, matrix, bias)
    }
}
