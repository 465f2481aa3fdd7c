//! What a caller may ask of a response and what it is told: plain values, mirrored by the Kotlin and Swift APIs.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};

/// How a response is generated. `None` means the model's own default (`generation_config.json`), then the stated one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationOptions {
    /// The most tokens that are generated; by default as many as the context holds.
    pub max_tokens: Option<usize>,
    /// Divides the logits; 0 is greedy. By default 0.
    pub temperature: Option<f32>,
    /// Only the k likeliest tokens; 0 switches it off. By default off.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability, in (0, 1]. By default 1.
    pub top_p: Option<f32>,
    /// Only tokens at least this fraction as likely as the likeliest, in [0, 1]. By default 0.
    pub min_p: Option<f32>,
    /// Divides positive logits of tokens seen so far, multiplies negative ones; above 0. By default 1.
    pub repetition_penalty: Option<f32>,
    /// Same seed, same model, same device: same text. By default a new one each time.
    pub seed: Option<u64>,
    /// How strongly each attached adapter acts in this response, in the order in which they are attached: 1 as trained, 0 as
    /// if it were not there. By default the scales that they are attached with. What the cache holds was computed with
    /// other scales, so a change computes the conversation anew.
    pub adapter_scales: Vec<f32>,
    /// Texts that end the response; they are not part of it.
    pub stop: Vec<String>,
    /// End-of-turn tokens are ordinary tokens: for benchmarks of a fixed length.
    pub ignore_end_of_turn: bool,
}

impl GenerationOptions {
    /// These options, and where they leave something open, `defaults`; stop texts of both count.
    pub fn or(&self, defaults: &Self) -> Self {
        Self {
            max_tokens: self.max_tokens.or(defaults.max_tokens),
            temperature: self.temperature.or(defaults.temperature),
            top_k: self.top_k.or(defaults.top_k),
            top_p: self.top_p.or(defaults.top_p),
            min_p: self.min_p.or(defaults.min_p),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            seed: self.seed.or(defaults.seed),
            adapter_scales: match self.adapter_scales.is_empty() {
                true => defaults.adapter_scales.clone(),
                false => self.adapter_scales.clone(),
            },
            stop: [self.stop.as_slice(), &defaults.stop].concat(),
            ignore_end_of_turn: self.ignore_end_of_turn || defaults.ignore_end_of_turn,
        }
    }

    /// The defaults of a model's `generation_config.json`; values there that are out of range are ignored.
    pub fn from_generation_config(config: &Value) -> Self {
        let number = |name: &str| config[name].as_f64().map(|v| v as f32);
        // Without `do_sample` transformers decodes greedily, whatever the temperature says.
        let sampled = config["do_sample"].as_bool() == Some(true);
        let options = Self {
            temperature: if sampled { number("temperature").or(Some(1.0)) } else { None },
            // transformers keeps the 50 likeliest where the file is silent.
            top_k: if sampled { config["top_k"].as_u64().map(|k| k as usize).or(Some(50)) } else { None },
            top_p: if sampled { number("top_p") } else { None },
            min_p: if sampled { number("min_p") } else { None },
            repetition_penalty: number("repetition_penalty"),
            ..Self::default()
        };
        if options.check().is_ok() { options } else { Self::default() }
    }

    /// Refuses values that cannot work.
    pub(crate) fn check(&self) -> Result<()> {
        let number = |name: &str, value: Option<f32>, accepted: fn(f32) -> bool, reason: &str| match value {
            Some(v) if !accepted(v) => Err(Error::option(name, v, reason)),
            _ => Ok(()),
        };
        number("temperature", self.temperature, |t| t >= 0.0 && t.is_finite(), "must be 0 or more")?;
        number("top_p", self.top_p, |p| p > 0.0 && p <= 1.0, "must be above 0 and at most 1")?;
        number("min_p", self.min_p, |p| (0.0..=1.0).contains(&p), "must be between 0 and 1")?;
        let penalty = self.repetition_penalty;
        number("repetition_penalty", penalty, |p| p > 0.0 && p.is_finite(), "must be above 0")?;
        if let Some(scale) = self.adapter_scales.iter().find(|scale| !scale.is_finite()) {
            return Err(Error::option("adapter_scales", scale, "must be finite numbers"));
        }
        if self.max_tokens == Some(0) {
            return Err(Error::option("max_tokens", 0, "must be at least 1"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::option("stop", "\"\"", "an empty text would stop at once"));
        }
        Ok(())
    }
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model ended its turn.
    EndOfTurn,
    /// A stop text appeared.
    StopSequence,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The cache holds no further token.
    ContextFull,
}

/// What a response cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the whole prompt, the conversation so far included.
    pub prompt_tokens: usize,
    /// How many of them were in the KV cache already and were not computed again: none if the device was lost meanwhile.
    pub cached_tokens: usize,
    /// How many of those other adapters had computed, as [`CachePolicy::Keep`](super::CachePolicy::Keep) allows; 0 else.
    pub inexact_tokens: usize,
    /// Tokens generated; one that ends the turn is not counted.
    pub output_tokens: usize,
    /// From the call to the first token.
    pub time_to_first_token: Duration,
    /// Prompt tokens computed per second of prefill.
    pub prefill_tokens_per_second: f64,
    /// Tokens generated per second after the first, the caller's own time between pulls left out; 0 without any.
    pub decode_tokens_per_second: f64,
}

/// A piece of a response: text that became certain, or the end.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseChunk {
    /// Whole characters to append; empty only in the last chunk, or where the model has no tokenizer.
    pub text: String,
    /// Set in the last chunk.
    pub finish_reason: Option<FinishReason>,
    /// Set in the last chunk.
    pub usage: Option<Usage>,
}

/// A whole response.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The text.
    pub text: String,
    /// The tokens generated, those of a stop text included.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// What it cost.
    pub usage: Usage,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn generation_config_samples_only_where_it_says_so() {
        let config = serde_json::json!({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1});
        let options = GenerationOptions::from_generation_config(&config);
        assert_eq!((options.temperature, options.top_p, options.repetition_penalty), (None, None, Some(1.1)));
        let config = serde_json::json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9});
        let options = GenerationOptions::from_generation_config(&config);
        assert_eq!((options.temperature, options.top_k, options.top_p), (Some(0.6), Some(50), Some(0.9)));
        let damaged = serde_json::json!({"do_sample": true, "temperature": -3});
        assert_eq!(GenerationOptions::from_generation_config(&damaged), GenerationOptions::default());
    }

    #[test]
    fn own_options_win_over_defaults() {
        let own = GenerationOptions {
            temperature: Some(0.0),
            stop: vec!["a".into()],
            ..GenerationOptions::default()
        };
        let defaults = GenerationOptions {
            temperature: Some(1.0),
            top_k: Some(3),
            stop: vec!["b".into()],
            ..GenerationOptions::default()
        };
        let both = own.or(&defaults);
        assert_eq!((both.temperature, both.top_k), (Some(0.0), Some(3)));
        assert_eq!(both.stop, ["a", "b"]);
    }

    #[test]
    fn impossible_values_are_named() {
        let ok = GenerationOptions::default();
        for (name, options) in [
            ("temperature", GenerationOptions { temperature: Some(f32::NAN), ..ok.clone() }),
            ("top_p", GenerationOptions { top_p: Some(0.0), ..ok.clone() }),
            ("min_p", GenerationOptions { min_p: Some(1.5), ..ok.clone() }),
            ("repetition_penalty", GenerationOptions { repetition_penalty: Some(0.0), ..ok.clone() }),
            ("max_tokens", GenerationOptions { max_tokens: Some(0), ..ok.clone() }),
            ("adapter_scales", GenerationOptions { adapter_scales: vec![1.0, f32::NAN], ..ok.clone() }),
            ("stop", GenerationOptions { stop: vec![String::new()], ..ok.clone() }),
        ] {
            assert!(matches!(options.check(), Err(Error::InvalidOption { option, .. }) if option == name));
        }
        ok.check().unwrap();
    }
}
