//! Writes a random compressed Llama of a phone's size, and a task file with branches on every linear: for measuring
//! load time, memory and speed where no real weights can be had.
//!
//!     cargo run --release -p calora-models --example random_model -- OUT [layers] [bits]
//!
//! The shape is that of Llama 3.2 1B (vocabulary 128,256, hidden 2048, MLP 8192, 32 heads over 8 KV heads); linears and
//! head are of 4 bits (or 2, 3, 8) in groups of 32, the embedding is bf16. `OUT/task.safetensors` has LoRA r16 and recovery r32.
#![allow(clippy::print_stderr)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use calora::arch::Recipe;
use calora::quant::Bits;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, View, serialize_to_file};

/// A tensor on its way to the file.
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

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(n).collect()
    }

    /// Uniform with the given standard deviation, as 16-bit floats.
    fn halves(&mut self, n: usize, std: f32, encode: fn(f32) -> [u8; 2]) -> Vec<u8> {
        let width = std * 12f32.sqrt();
        (0..n)
            .flat_map(|_| encode(((self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * width))
            .collect()
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let out = PathBuf::from(arguments.next().context("usage: random_model OUT [layers] [bits]")?);
    let layers: usize = arguments.next().map_or(Ok(16), |a| a.parse())?;
    let bits = arguments.next().map_or(Ok(4), |a| a.parse())?;
    let bits = Bits::from_count(bits).context("bits are 2, 3, 4 or 8")?;
    let (format, levels) = match bits.is_mid_rise() {
        true => ("calora-mid-rise", serde_json::json!("mid-rise")),
        false => ("pack-quantized", serde_json::Value::Null),
    };
    std::fs::create_dir_all(&out)?;
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048,
        "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128_256, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "hidden_act": "silu", "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
        "quantization_config": {
            "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed",
            "ignore": [],
            "config_groups": {"group_0": {
                "targets": ["Linear"], "input_activations": null, "output_activations": null,
                "weights": {"num_bits": bits.count(), "type": "int", "strategy": "group", "group_size": 32,
                            "symmetric": true, "dynamic": false, "levels": levels}
            }}
        }
    });
    std::fs::write(out.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    let recipe = calora::arch::recipe(&config, &out.join("config.json"))?;
    let mut rng = Random(7);
    let mut tensors = Vec::new();
    for matrix in &recipe.matrices {
        let (rows, cols, path) = (matrix.rows, matrix.cols, &matrix.path);
        let std = 1.2 / (cols as f32).sqrt();
        if path == "model.embed_tokens" {
            let data = rng.halves(rows * cols, 1.0, |v| bf16::from_f32(v).to_le_bytes());
            tensors.push((format!("{path}.weight"), Bytes(Dtype::BF16, vec![rows, cols], data)));
            continue;
        }
        // The standard deviation of uniform integers.
        let spread = ((4f32.powi(bits.count() as i32) - 1.0) / 12.0).sqrt();
        let scale = f16::from_f32(std / spread).to_le_bytes();
        let shape: Vec<u8> = [rows as i64, cols as i64].iter().flat_map(|v| v.to_le_bytes()).collect();
        let words = bits.words(cols);
        let words = Bytes(Dtype::I32, vec![rows, words], rng.bytes(rows * words * 4));
        tensors.push((format!("{path}.weight_packed"), words));
        let scales = Bytes(Dtype::F16, vec![rows, cols / 32], scale.repeat(rows * cols / 32));
        tensors.push((format!("{path}.weight_scale"), scales));
        tensors.push((format!("{path}.weight_shape"), Bytes(Dtype::I64, vec![2], shape)));
    }
    for vector in &recipe.vectors {
        let data = bf16::ONE.to_le_bytes().repeat(vector.len);
        tensors.push((vector.name.clone(), Bytes(Dtype::BF16, vec![vector.len], data)));
    }
    serialize_to_file(tensors, None, &out.join("model.safetensors"))?;
    task_file(&recipe, &mut rng, &out)?;
    eprintln!("wrote {}", out.display());
    Ok(())
}

/// LoRA of rank 16 and recovery of rank 32 on every linear but the head, f16, moving each output by about a tenth.
fn task_file(recipe: &Recipe, rng: &mut Random, out: &std::path::Path) -> Result<()> {
    let mut tensors = Vec::new();
    let mut scaling = serde_json::Map::new();
    for (id, linear) in recipe.linears.iter().enumerate().filter(|(_, l)| l.path != "lm_head") {
        let (rows, cols) = recipe.linear_shape(calora::arch::LinearId(id));
        for (down, up, rank) in [("lora_A", "lora_B", 16), ("recovery_D", "recovery_U", 32)] {
            for (name, shape, std) in [
                (down, vec![rank, cols], 1.0 / (cols as f32).sqrt()),
                (up, vec![rows, rank], 0.1 / (rank as f32).sqrt()),
            ] {
                let data = rng.halves(shape[0] * shape[1], std, |v| f16::from_f32(v).to_le_bytes());
                let name = format!("base_model.model.{}.{name}.weight", linear.path);
                tensors.push((name, Bytes(Dtype::F16, shape, data)));
            }
        }
        scaling.insert(linear.path.clone(), serde_json::json!({"lora": 1.0, "recovery": 1.0}));
    }
    let metadata = HashMap::from([
        ("calora.format".to_owned(), "task-adapter".to_owned()),
        ("calora.version".to_owned(), "1".to_owned()),
        ("calora.name".to_owned(), "random".to_owned()),
        ("calora.base".to_owned(), "unbound".to_owned()),
        ("calora.activation".to_owned(), "gelu".to_owned()),
        ("calora.scaling".to_owned(), serde_json::Value::Object(scaling).to_string()),
    ]);
    Ok(serialize_to_file(tensors, Some(metadata), &out.join("task.safetensors"))?)
}
