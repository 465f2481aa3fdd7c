//! From logits to the next token: greedy, or temperature, top-k, top-p and min-p in Hugging Face's order.
//!
//! The repetition penalty comes first and also applies to greedy decoding. Equal logits are ordered by id, so that a seed
//! gives the same token on every machine that computes the same logits.

use super::options::GenerationOptions;
use super::random::Random;
use crate::error::{Error, Result};

/// Chooses tokens for one response.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    random: Random,
}

impl Sampler {
    /// A sampler with every open option at its stated default; refuses values that cannot work.
    pub fn new(options: &GenerationOptions) -> Result<Self> {
        options.check()?;
        Ok(Self {
            temperature: options.temperature.unwrap_or(0.0),
            top_k: options.top_k.unwrap_or(0),
            top_p: options.top_p.unwrap_or(1.0),
            min_p: options.min_p.unwrap_or(0.0),
            repetition_penalty: options.repetition_penalty.unwrap_or(1.0),
            random: Random::new(options.seed.unwrap_or_else(Random::fresh_seed)),
        })
    }

    /// Whether the device's own argmax is the answer, so that no logits have to be read back.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// The next token from (vocabulary) logits; `seen` are the tokens of prompt and output so far.
    pub fn sample(&mut self, logits: &mut [f32], seen: &[u32]) -> Result<u32> {
        self.penalise(logits, seen);
        let best = argmax(logits).ok_or(Error::NotFinite { what: "the logits".into() })?;
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }
        let top = logits[best];
        // Relative to the largest, so that a tiny temperature cannot overflow.
        let scaled = |logit: f32| (logit - top) / self.temperature;
        // The likeliest weighs 1. NaN and minus infinity weigh nothing.
        let weight = |logit: f32| f64::from(scaled(logit)).exp();
        let mut candidates: Vec<(u32, f64)> =
            logits.iter().enumerate().map(|(id, logit)| (id as u32, weight(*logit))).collect();
        candidates.retain(|(_, weight)| *weight > 0.0);
        self.keep_top_k(&mut candidates);
        self.keep_top_p(&mut candidates);
        candidates.retain(|(_, weight)| *weight >= f64::from(self.min_p));
        let mut point = self.random.uniform() * sum(&candidates);
        for (id, weight) in &candidates {
            point -= weight;
            if point < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave the point a hair behind the last candidate.
        Ok(candidates.last().map_or(best as u32, |(id, _)| *id))
    }

    fn penalise(&self, logits: &mut [f32], seen: &[u32]) {
        if self.repetition_penalty == 1.0 {
            return;
        }
        let mut done = vec![false; logits.len()];
        for id in seen {
            let id = *id as usize;
            if id < logits.len() && !std::mem::replace(&mut done[id], true) {
                let logit = &mut logits[id];
                *logit = if *logit < 0.0 {
                    *logit * self.repetition_penalty
                } else {
                    *logit / self.repetition_penalty
                };
            }
        }
    }

    /// Everything below the k-th largest goes; what equals it stays, as in Hugging Face.
    fn keep_top_k(&self, candidates: &mut Vec<(u32, f64)>) {
        if self.top_k == 0 || self.top_k >= candidates.len() {
            return;
        }
        let mut weights: Vec<f64> = candidates.iter().map(|(_, weight)| *weight).collect();
        let (_, kth, _) = weights.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a));
        let least = *kth;
        candidates.retain(|(_, weight)| *weight >= least);
    }

    /// Sorted by weight, the shortest head that reaches `top_p` of the sum, at least one.
    fn keep_top_p(&self, candidates: &mut Vec<(u32, f64)>) {
        if self.top_p >= 1.0 {
            return;
        }
        let (total, top_p) = (sum(candidates), f64::from(self.top_p));
        // All weights below (1 - p) / n of the sum come to less than 1 - p of it together, so they are in the tail:
        // dropping them first leaves some hundreds to sort in place of a whole vocabulary.
        let tail = (1.0 - top_p) * total / candidates.len() as f64 * 0.999;
        candidates.retain(|(_, weight)| *weight >= tail);
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let (mut reached, mut kept) = (0.0, 0);
        while reached < top_p * total && kept < candidates.len() {
            reached += candidates[kept].1;
            kept += 1;
        }
        candidates.truncate(kept.max(1));
    }
}

fn sum(candidates: &[(u32, f64)]) -> f64 {
    candidates.iter().map(|(_, weight)| weight).sum()
}

/// The index of the largest value, the first among equals; `None` if no value is a finite number.
pub(crate) fn argmax(values: &[f32]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (i, v) in values.iter().enumerate() {
        if v.is_finite() && best.is_none_or(|b| *v > values[b]) {
            best = Some(i);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, -2.0, 2.0, 3.0, 0.5];

    fn sampler(change: impl FnOnce(&mut GenerationOptions)) -> Sampler {
        let mut options =
            GenerationOptions { temperature: Some(0.8), seed: Some(5), ..GenerationOptions::default() };
        change(&mut options);
        Sampler::new(&options).unwrap()
    }

    /// The probability of each token straight from the definition: filters as masks over probabilities, in the order of
    /// transformers, each on the distribution that the one before left.
    fn reference(options: &GenerationOptions, seen: &[u32]) -> Vec<f64> {
        let mut logits: Vec<f64> = LOGITS.iter().map(|v| f64::from(*v)).collect();
        let penalty = f64::from(options.repetition_penalty.unwrap_or(1.0));
        let mut unique = seen.to_vec();
        unique.dedup();
        for id in unique {
            let l = &mut logits[id as usize];
            *l = if *l < 0.0 { *l * penalty } else { *l / penalty };
        }
        for l in &mut logits {
            *l /= f64::from(options.temperature.unwrap());
        }
        let softmax = |logits: &[f64]| {
            let sum: f64 = logits.iter().map(|l| l.exp()).sum();
            logits.iter().map(|l| l.exp() / sum).collect::<Vec<f64>>()
        };
        if let Some(k) = options.top_k.filter(|k| *k > 0) {
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            logits.iter_mut().filter(|l| **l < sorted[k - 1]).for_each(|l| *l = f64::NEG_INFINITY);
        }
        if let Some(p) = options.top_p {
            let probabilities = softmax(&logits);
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]).then(a.cmp(b)));
            let mut before = 0.0;
            for i in order {
                if before >= f64::from(p) {
                    logits[i] = f64::NEG_INFINITY;
                }
                before += probabilities[i];
            }
        }
        if let Some(p) = options.min_p {
            let probabilities = softmax(&logits);
            let top = probabilities.iter().copied().fold(0.0, f64::max);
            for (l, probability) in logits.iter_mut().zip(probabilities) {
                if probability < f64::from(p) * top {
                    *l = f64::NEG_INFINITY;
                }
            }
        }
        softmax(&logits)
    }

    #[test]
    fn frequencies_match_the_definition() {
        let base =
            GenerationOptions { temperature: Some(0.8), seed: Some(11), ..GenerationOptions::default() };
        for options in [
            base.clone(),
            GenerationOptions { temperature: Some(2.0), ..base.clone() },
            GenerationOptions { top_k: Some(1), ..base.clone() },
            GenerationOptions { top_k: Some(3), ..base.clone() },
            GenerationOptions { top_p: Some(0.6), ..base.clone() },
            GenerationOptions { min_p: Some(0.2), ..base.clone() },
            GenerationOptions { repetition_penalty: Some(1.5), ..base.clone() },
            GenerationOptions { top_k: Some(4), top_p: Some(0.9), min_p: Some(0.1), ..base.clone() },
        ] {
            let seen = [1, 2, 3];
            let expected = reference(&options, &seen);
            let mut sampler = Sampler::new(&options).unwrap();
            let mut counts = [0usize; 6];
            const N: usize = 20_000;
            for _ in 0..N {
                counts[sampler.sample(&mut LOGITS.clone(), &seen).unwrap() as usize] += 1;
            }
            for (count, p) in counts.iter().zip(&expected) {
                let deviation = (p * (1.0 - p) / N as f64).sqrt();
                let frequency = *count as f64 / N as f64;
                assert!((frequency - p).abs() <= 5.0 * deviation, "{options:?}: {counts:?} for {expected:?}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_equals_and_heeds_the_penalty() {
        let mut greedy = sampler(|o| o.temperature = None);
        assert!(greedy.is_plain_greedy());
        assert_eq!(greedy.sample(&mut LOGITS.clone(), &[1]).unwrap(), 1);
        let mut penalised = sampler(|o| (o.temperature, o.repetition_penalty) = (Some(0.0), Some(2.0)));
        assert!(!penalised.is_plain_greedy());
        assert_eq!(penalised.sample(&mut LOGITS.clone(), &[1, 1, 1]).unwrap(), 4);
        assert_eq!(penalised.sample(&mut LOGITS.clone(), &[1, 4, 99]).unwrap(), 3);
        assert_eq!(penalised.sample(&mut [-1.0, -1.5], &[0]).unwrap(), 1, "negative logits are multiplied");
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let draw = |seed| {
            let mut sampler = sampler(|o| o.seed = Some(seed));
            (0..32).map(|_| sampler.sample(&mut LOGITS.clone(), &[]).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
        assert_eq!(draw(3)[..8], [1, 4, 4, 1, 1, 4, 1, 4], "the promise of a seed across versions");
    }

    #[test]
    fn extreme_values_neither_overflow_nor_pass() {
        let mut tiny = sampler(|o| o.temperature = Some(1e-30));
        assert_eq!(tiny.sample(&mut [1e30, 3.0e30, f32::NAN, f32::NEG_INFINITY], &[]).unwrap(), 1);
        assert!(matches!(tiny.sample(&mut [f32::NAN; 4], &[]), Err(Error::NotFinite { .. })));
        assert!(matches!(tiny.sample(&mut [], &[]), Err(Error::NotFinite { .. })));
    }
}
