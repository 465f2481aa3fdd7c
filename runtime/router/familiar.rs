//! How near a request comes to examples, by what the model would say to it.
//!
//! A **sketch** is a sample of the logits after the prompt: requests of one kind call for the same words, and a request of
//! no kind for others. It costs nothing, because the same pass gives the routes' likelihoods.

/// Logits of a sketch; more tell no more (256 of 4,096 keep what all do).
const SAMPLED: usize = 256;

/// This share of the examples may be less near to the others than a request must be.
const OUTLIERS: f64 = 0.05;

/// Every n-th of the logits.
pub(super) fn sketch(logits: &[f32]) -> Vec<f32> {
    logits.iter().step_by(logits.len().div_ceil(SAMPLED).max(1)).copied().collect()
}

/// Sketches of the examples.
#[derive(Clone, Debug)]
pub(super) struct Familiar {
    /// What all examples have in common, which tells nothing.
    mean: Vec<f32>,
    /// Of length 1.
    examples: Vec<Vec<f32>>,
    /// The least familiarity.
    pub(super) floor: f64,
    /// Tokens of the shortest prompt of an example; 0 where the caller gave a floor.
    shortest: usize,
}

impl Familiar {
    /// Of at least two examples, each with its prompt's tokens; the floor is measured on them unless it is given.
    pub(super) fn new(seen: Vec<(usize, Vec<f32>)>, floor: Option<f64>) -> Self {
        let mut mean = vec![0.0; seen[0].1.len()];
        for (_, sketch) in &seen {
            mean.iter_mut().zip(sketch).for_each(|(sum, v)| *sum += v / seen.len() as f32);
        }
        let shortest = seen.iter().map(|(len, _)| *len).min().filter(|_| floor.is_none()).unwrap_or(0);
        let examples: Vec<Vec<f32>> = seen.iter().map(|(_, sketch)| direction(sketch, &mean)).collect();
        let mut familiar = Self { mean, examples, floor: 0.0, shortest };
        familiar.floor = floor.unwrap_or_else(|| familiar.measured());
        familiar
    }

    /// Whether a request is like the examples, by its prompt's tokens and what [`Self::nearest`] says.
    pub(super) fn takes(&self, len: usize, near: f64) -> bool {
        len >= self.shortest && near >= self.floor
    }

    /// How near the examples come to each other, the least near left out.
    fn measured(&self) -> f64 {
        let others =
            |i: usize| self.examples.iter().enumerate().filter(move |(j, _)| i != *j).map(|(_, e)| e);
        let mut near: Vec<f64> =
            self.examples.iter().enumerate().map(|(i, example)| nearest(example, others(i))).collect();
        near.sort_by(f64::total_cmp);
        near[(near.len() as f64 * OUTLIERS) as usize]
    }

    /// The cosine with the nearest example, from -1 to 1.
    pub(super) fn nearest(&self, sketch: &[f32]) -> f64 {
        nearest(&direction(sketch, &self.mean), self.examples.iter())
    }
}

fn nearest<'a>(direction: &[f32], examples: impl Iterator<Item = &'a Vec<f32>>) -> f64 {
    let cosine = |e: &Vec<f32>| f64::from(e.iter().zip(direction).map(|(a, b)| a * b).sum::<f32>());
    examples.map(cosine).fold(-1.0, f64::max)
}

/// Where a sketch lies as seen from the mean, at length 1. A constant added to all logits changes no answer: it is taken
/// out.
fn direction(sketch: &[f32], mean: &[f32]) -> Vec<f32> {
    let mut seen: Vec<f32> = sketch.iter().zip(mean).map(|(v, mean)| v - mean).collect();
    let shift = seen.iter().sum::<f32>() / seen.len() as f32;
    seen.iter_mut().for_each(|v| *v -= shift);
    let length = seen.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    seen.iter_mut().for_each(|v| *v /= length);
    seen
}

#[cfg(test)]
mod tests {
    use super::{Familiar, sketch};

    #[test]
    fn what_lies_elsewhere_is_unfamiliar() {
        let near = |x: f32, i: usize| vec![x, 1.0, 0.1 * (i % 3) as f32, 2.0];
        let examples: Vec<_> =
            (0..20).map(|i| (3 + i, near(if i % 2 == 0 { 5.0 } else { -5.0 }, i))).collect();
        let familiar = Familiar::new(examples, None);
        assert!(familiar.floor > 0.9, "{}", familiar.floor);
        for x in [5.0, -5.0] {
            assert!(familiar.nearest(&near(x, 1)) >= familiar.floor);
            let louder: Vec<f32> = near(x, 1).iter().map(|v| v + 100.0).collect();
            assert!(familiar.nearest(&louder) >= familiar.floor, "a constant says nothing");
        }
        assert!(familiar.nearest(&[0.0, 9.0, -9.0, 2.0]) < familiar.floor);
        assert!(familiar.takes(3, familiar.floor) && !familiar.takes(2, 1.0) && !familiar.takes(9, 0.0));
        let given = Familiar::new(vec![(3, near(1.0, 1)), (4, near(2.0, 2))], Some(0.25));
        assert!(given.takes(1, 0.25) && !given.takes(1, 0.2));
    }

    #[test]
    fn a_sketch_samples_evenly() {
        let logits: Vec<f32> = (0..4096).map(|i| i as f32).collect();
        let sample = sketch(&logits);
        assert_eq!((sample.len(), sample[0], sample[255]), (256, 0.0, 4080.0));
        assert_eq!(sketch(&[1.0, 2.0]), [1.0, 2.0]);
        assert!(sketch(&vec![0.0; 1000]).len() <= 256);
    }
}
