//! Integers to u32 words and back.

use super::Bits;

/// Appends one row of stored integers (`0..2^bits`) to `words`; the last word is padded with zeros.
pub fn pack_row(bits: Bits, row: &[u8], words: &mut Vec<u32>) {
    for chunk in row.chunks(bits.per_word()) {
        let mut word = 0;
        for (i, q) in chunk.iter().enumerate() {
            word |= u32::from(*q) << (i * bits.count());
        }
        words.push(word);
    }
}

/// The stored integer `k` of a row of words.
#[inline]
pub fn unpack(bits: Bits, words: &[u32], k: usize) -> u8 {
    let word = words[k / bits.per_word()];
    let mask = (1u32 << bits.count()) - 1;
    ((word >> (k % bits.per_word() * bits.count())) & mask) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_in_every_place() {
        for bits in [Bits::Int4, Bits::Int8] {
            for len in [1usize, 3, 7, 8, 9, 31, 32, 33, 172] {
                let row: Vec<u8> = (0..len).map(|i| ((i * 7 + 3) % (1 << bits.count())) as u8).collect();
                let mut words = Vec::new();
                pack_row(bits, &row, &mut words);
                assert_eq!(words.len(), len.div_ceil(bits.per_word()));
                let back: Vec<u8> = (0..len).map(|k| unpack(bits, &words, k)).collect();
                assert_eq!(back, row);
            }
        }
    }
}
