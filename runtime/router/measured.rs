//! What a router measures before it routes: how likely its answers are by themselves, and sketches of its examples.
//!
//! Invariant: bytes that were written give back the same floats, bit for bit; others give nothing.

/// What was measured so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Measured {
    /// The log-likelihood of each answer by itself.
    pub(super) prior: Vec<f64>,
    /// Tokens of each example's prompt, and its sketch.
    pub(super) seen: Vec<(usize, Vec<f32>)>,
}

impl Measured {
    /// Little-endian: answers, examples and values of a sketch (u32 each), the prior (f64), then each example's length
    /// (u32) and sketch (f32).
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let sketch = self.seen.first().map_or(0, |(_, sketch)| sketch.len());
        let counts = [self.prior.len(), self.seen.len(), sketch].map(|n| n as u32);
        let mut bytes: Vec<u8> = counts.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend(self.prior.iter().flat_map(|v| v.to_le_bytes()));
        for (len, sketch) in &self.seen {
            bytes.extend((*len as u32).to_le_bytes());
            bytes.extend(sketch.iter().flat_map(|v| v.to_le_bytes()));
        }
        bytes
    }

    /// Of so many answers and examples.
    pub(super) fn from_bytes(mut bytes: &[u8], answers: usize, examples: usize) -> Option<Self> {
        let counts: [u32; 3] =
            [take(&mut bytes)?, take(&mut bytes)?, take(&mut bytes)?].map(u32::from_le_bytes);
        let [a, e, sketch] = counts.map(|n| n as usize);
        if (a, e) != (answers, examples)
            || sketch > bytes.len()
            || bytes.len() != a * 8 + e * (4 + sketch * 4)
        {
            return None;
        }
        let mut prior = Vec::with_capacity(a);
        for _ in 0..a {
            prior.push(f64::from_le_bytes(take(&mut bytes)?));
        }
        let mut seen: Vec<(usize, Vec<f32>)> = Vec::with_capacity(e);
        for _ in 0..e {
            let len = u32::from_le_bytes(take(&mut bytes)?) as usize;
            let values = (0..sketch).map(|_| take(&mut bytes).map(f32::from_le_bytes));
            seen.push((len, values.collect::<Option<_>>()?));
        }
        let sound =
            prior.iter().all(|v| v.is_finite()) && seen.iter().all(|(_, s)| s.iter().all(|v| v.is_finite()));
        sound.then_some(Self { prior, seen })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::Measured;

    #[test]
    fn bytes_give_back_what_was_measured_or_nothing() {
        let measured =
            Measured { prior: vec![-1.25, -700.0], seen: vec![(3, vec![0.5, -0.0]), (9, vec![1e-30, 7.0])] };
        let bytes = measured.to_bytes();
        assert_eq!(Measured::from_bytes(&bytes, 2, 2), Some(measured));
        assert_eq!(Measured::from_bytes(&bytes, 2, 3), None);
        assert_eq!(Measured::from_bytes(&bytes, 1, 2), None);
        for len in 0..bytes.len() {
            assert_eq!(Measured::from_bytes(&bytes[..len], 2, 2), None, "{len}");
        }
        let mut infinite = bytes;
        infinite.splice(12..20, f64::INFINITY.to_le_bytes());
        assert_eq!(Measured::from_bytes(&infinite, 2, 2), None);
        let none = Measured { prior: vec![0.0; 2], seen: Vec::new() };
        assert_eq!(Measured::from_bytes(&none.to_bytes(), 2, 0), Some(none));
    }
}
