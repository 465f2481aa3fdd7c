//! The canary: what an adapter does to the logits after a short prompt, kept in its file, so that an engine can prove that
//! the adapter acts, and acts as it did where it was made.
//!
//! Compared are differences of logits, with and without the adapter, each lessened by their mean over the vocabulary
//! (which changes no probability and could hide everything else): the direction over the tokens that change most, and the
//! norm over all. Metadata `calora.probe`, JSON: `prompt`, `tokens`, `differences`, `norm`, `scheme`, `activations`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The metadata key.
pub(super) const KEY: &str = "calora.probe";
/// Tokens whose difference is kept.
const KEPT: usize = 16;
/// The longest prompt: one short pass on any device.
pub const LONGEST_PROMPT: usize = 64;
/// Tokens that a file may keep.
const MOST_KEPT: usize = 256;

/// A recorded probe of one adapter on one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// Token ids; the logits after the last count.
    pub prompt: Vec<u32>,
    /// The tokens whose logits the adapter changes most.
    pub tokens: Vec<u32>,
    /// By how much, less the mean over the vocabulary.
    pub differences: Vec<f32>,
    /// The Euclidean norm of all differences, less their mean.
    pub norm: f32,
    /// How the model's weights were stored: `bf16`, `int4 g32`.
    pub scheme: String,
    /// `f32` or `int8`.
    pub activations: String,
}

/// How a probe went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CanaryVerdict {
    /// As it was recorded.
    AsRecorded,
    /// Nothing is recorded in the file; the adapter does change the logits.
    Acts,
    /// The logits are the same with and without the adapter.
    DoesNothing,
    /// The logits change in another way than was recorded.
    ActsOtherwise,
}

/// What a probe showed.
#[derive(Clone, Debug, PartialEq)]
pub struct CanaryReport {
    /// The adapter's name.
    pub adapter: String,
    /// The outcome.
    pub verdict: CanaryVerdict,
    /// The norm of the difference, by the norm of the logits without the adapter.
    pub change: f64,
    /// The cosine between the recorded differences and those found; `None` where nothing is recorded.
    pub cosine: Option<f64>,
    /// The norm found, by the recorded one.
    pub norm_ratio: Option<f64>,
    /// On which weights and activations it was recorded, for people.
    pub recorded_on: Option<String>,
}

/// Below this share of the logits' norm an adapter does nothing: rounding of a device is some 1e-6 of them, the weakest
/// shipped adapter changes them by 1e-1.
const NO_CHANGE: f64 = 1e-4;
/// What counts as the same: the least cosine, and the largest factor between the norms, either way.
///
/// Measured with the seven shipped adapters after two prompts, recorded on the bf16 base on the CPU in float32:
///
/// | run on | cosine at least | norm, times the recorded |
/// |---|---|---|
/// | bf16, CPU and software GPU | 1.0000 | 1.000 |
/// | int8, int8 activations | 1.0000 | 0.988 to 1.006 |
/// | int4, CPU and software GPU, f32 and int8 activations | 0.9988 | 1.005 to 1.116 |
/// | int3, int8 activations | 0.9909 | 0.812 to 1.267 |
/// | int2, int8 activations | 0.8807 | 0.830 to 2.238 |
/// | bf16, scale lost (half or double) | 0.7586 | 0.333 to 0.734, 1.216 to 5.064 |
/// | bf16, rows permuted | -0.58 to 0.7107 | 0.411 to 0.980 |
/// | bf16, branches of another of the seven | up to 0.8619 | |
///
/// So on weights stored as they were when it was recorded a canary finds a lost scale; on others it finds a wrong base and
/// damage. On int2 a LoRA that was made for uncompressed weights does act otherwise, which is what recovery repairs: its
/// canary is recorded on the compressed model.
#[derive(Clone, Copy)]
struct Tolerance {
    cosine: f64,
    factor: f64,
}

const SAME_WEIGHTS: Tolerance = Tolerance { cosine: 0.99, factor: 1.1 };
const OTHER_WEIGHTS: Tolerance = Tolerance { cosine: 0.95, factor: 1.5 };

impl Canary {
    /// From the logits after `prompt` without and with the adapter.
    pub(crate) fn record(
        prompt: &[u32],
        (without, with): (&[f32], &[f32]),
        scheme: &str,
        activations: &str,
    ) -> Self {
        let differences = differences(without, with);
        let mut order: Vec<usize> = (0..differences.len()).collect();
        order.sort_by(|a, b| differences[*b].abs().total_cmp(&differences[*a].abs()).then(a.cmp(b)));
        order.truncate(KEPT);
        Self {
            prompt: prompt.to_vec(),
            tokens: order.iter().map(|i| *i as u32).collect(),
            differences: order.iter().map(|i| differences[*i] as f32).collect(),
            norm: norm(&differences) as f32,
            scheme: scheme.to_owned(),
            activations: activations.to_owned(),
        }
    }

    /// From a file's metadata; refuses what cannot be a record.
    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        let broken = |reason: String| Err(Error::malformed(path, format!("{KEY}: {reason}")));
        let canary: Self = match serde_json::from_str(text) {
            Ok(canary) => canary,
            Err(e) => return broken(format!("is no record of a probe: {e}")),
        };
        if !(1..=LONGEST_PROMPT).contains(&canary.prompt.len()) {
            return broken(format!(
                "has {} prompt tokens, 1 to {LONGEST_PROMPT} are run",
                canary.prompt.len()
            ));
        }
        let (tokens, differences) = (canary.tokens.len(), canary.differences.len());
        if !(1..=MOST_KEPT).contains(&tokens) || tokens != differences {
            return broken(format!("has {tokens} tokens and {differences} differences"));
        }
        if !canary.norm.is_finite() || canary.norm <= 0.0 || canary.differences.iter().any(|d| !d.is_finite())
        {
            return broken("its numbers are no differences of logits".into());
        }
        Ok(canary)
    }

    /// As it stands in a file.
    pub(super) fn to_json(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// The prompt and the tokens, which a model of another vocabulary does not have.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        self.prompt.iter().chain(&self.tokens).copied()
    }
}

impl CanaryReport {
    /// Judges the logits after the probe's prompt, without and with the adapter, of a model stored in `scheme`.
    pub(crate) fn judge(
        adapter: &str,
        recorded: Option<&Canary>,
        scheme: &str,
        (without, with): (&[f32], &[f32]),
    ) -> Self {
        let differences = differences(without, with);
        let size = norm(&differences);
        let all: Vec<f64> = without.iter().map(|v| f64::from(*v)).collect();
        let change = size / norm(&all).max(f64::MIN_POSITIVE);
        let cosine = recorded.map(|canary| {
            let here: Vec<f64> = canary.tokens.iter().map(|t| differences[*t as usize]).collect();
            let there: Vec<f64> = canary.differences.iter().map(|d| f64::from(*d)).collect();
            let dot: f64 = here.iter().zip(&there).map(|(a, b)| a * b).sum();
            dot / (norm(&here) * norm(&there)).max(f64::MIN_POSITIVE)
        });
        let norm_ratio = recorded.map(|canary| size / f64::from(canary.norm));
        let same = recorded.is_some_and(|canary| canary.scheme == scheme);
        let least = if same { SAME_WEIGHTS } else { OTHER_WEIGHTS };
        let alike = |cosine: f64, ratio: f64| {
            cosine >= least.cosine && (least.factor.recip()..=least.factor).contains(&ratio)
        };
        let verdict = match cosine.zip(norm_ratio) {
            _ if change < NO_CHANGE => CanaryVerdict::DoesNothing,
            None => CanaryVerdict::Acts,
            Some((cosine, ratio)) if alike(cosine, ratio) => CanaryVerdict::AsRecorded,
            Some(_) => CanaryVerdict::ActsOtherwise,
        };
        let recorded_on = recorded.map(|c| format!("{}, {} activations", c.scheme, c.activations));
        Self { adapter: adapter.to_owned(), verdict, change, cosine, norm_ratio, recorded_on }
    }

    /// An error where the adapter does nothing or something else.
    pub fn require(&self) -> Result<()> {
        let reason = match (self.verdict, self.cosine, self.norm_ratio) {
            (CanaryVerdict::AsRecorded | CanaryVerdict::Acts, ..) => return Ok(()),
            (CanaryVerdict::DoesNothing, ..) => {
                "the logits after its probe are the same without it; it was never trained, or is damaged"
                    .into()
            }
            (CanaryVerdict::ActsOtherwise, cosine, ratio) => format!(
                "it changes the logits after its probe in another way than recorded on {} (cosine {:.3}, {:.2} times \
                 as strong); it was made for another base, or is damaged",
                self.recorded_on.as_deref().unwrap_or("another model"),
                cosine.unwrap_or_default(),
                ratio.unwrap_or_default(),
            ),
        };
        Err(Error::CanaryFailed { adapter: self.adapter.clone(), reason })
    }
}

/// `with - without`, less the mean: a common shift of all logits changes no probability.
fn differences(without: &[f32], with: &[f32]) -> Vec<f64> {
    let mut differences: Vec<f64> =
        with.iter().zip(without).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
    let mean = differences.iter().sum::<f64>() / differences.len().max(1) as f64;
    differences.iter_mut().for_each(|d| *d -= mean);
    differences
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(without: &[f32], with: &[f32]) -> Canary {
        Canary::record(&[1, 2], (without, with), "bf16", "f32")
    }

    #[test]
    fn a_record_is_recognised_and_its_opposite_is_not() {
        let without: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let with: Vec<f32> = without.iter().enumerate().map(|(i, v)| v + (i as f32 * 1.3).cos()).collect();
        let canary = record(&without, &with);
        let verdict =
            |with: &[f32]| CanaryReport::judge("a", Some(&canary), "bf16", (&without, with)).verdict;
        assert_eq!(verdict(&with), CanaryVerdict::AsRecorded);
        assert_eq!(verdict(&without), CanaryVerdict::DoesNothing);
        let moved =
            |by: f32| -> Vec<f32> { with.iter().zip(&without).map(|(a, b)| b + by * (a - b)).collect() };
        assert_eq!(verdict(&moved(-1.0)), CanaryVerdict::ActsOtherwise);
        assert_eq!(verdict(&moved(2.0)), CanaryVerdict::ActsOtherwise);
        // A shift of all logits is no change at all.
        let shifted: Vec<f32> = without.iter().map(|v| v + 3.0).collect();
        assert_eq!(verdict(&shifted), CanaryVerdict::DoesNothing);
    }

    #[test]
    fn what_cannot_be_a_record_is_refused() {
        let good = record(&[0.0, 0.0, 0.0], &[1.0, 2.0, 5.0]);
        assert_eq!(Canary::parse(Path::new("f"), &good.to_json()).ok(), Some(good.clone()));
        let cases = [
            Canary { prompt: Vec::new(), ..good.clone() },
            Canary { prompt: vec![1; LONGEST_PROMPT + 1], ..good.clone() },
            Canary { tokens: vec![1], ..good.clone() },
            Canary { norm: 0.0, ..good.clone() },
            Canary { tokens: vec![0; 300], differences: vec![1.0; 300], ..good },
        ];
        for case in cases {
            assert!(Canary::parse(Path::new("f"), &case.to_json()).is_err(), "{case:?}");
        }
        assert!(Canary::parse(Path::new("f"), "[]").is_err());
    }
}
