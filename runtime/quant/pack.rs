//! Integers to u32 words and back.

use super::Bits;
use super::activations::BLOCK;

/// Appends one row of stored integers (`0..2^bits`) to `words`; the end of the row is padded with zeros.
pub fn pack_row(bits: Bits, row: &[u8], words: &mut Vec<u32>) {
    let start = words.len();
    words.resize(start + bits.words(row.len()), 0);
    let words = &mut words[start..];
    for (k, q) in row.iter().map(|q| u32::from(*q)).enumerate() {
        let (word, shift) = place(bits, k);
        if bits == Bits::Int3 {
            let (high_word, high_shift) = high_place(k);
            words[high_word] |= (q >> 2) << high_shift;
            words[word] |= (q & 3) << shift;
        } else {
            words[word] |= q << shift;
        }
    }
}

/// The stored integer `k` of a row of words.
#[inline]
pub fn unpack(bits: Bits, words: &[u32], k: usize) -> u8 {
    let (word, shift) = place(bits, k);
    let take = |word: usize, shift: usize, mask: u32| ((words[word] >> shift) & mask) as u8;
    match bits {
        Bits::Int2 => take(word, shift, 3),
        Bits::Int3 => {
            let (high_word, high_shift) = high_place(k);
            take(word, shift, 3) | take(high_word, high_shift, 1) << 2
        }
        Bits::Int4 => take(word, shift, 15),
        Bits::Int8 => take(word, shift, 255),
    }
}

/// The word and the bit where integer `k` starts; of int3 its low two bits.
#[inline]
const fn place(bits: Bits, k: usize) -> (usize, usize) {
    match bits {
        Bits::Int2 => (k / 16, k % 16 * 2),
        Bits::Int3 => (k / BLOCK * 3 + k % BLOCK / 16, k % 16 * 2),
        Bits::Int4 => (k / 8, k % 8 * 4),
        Bits::Int8 => (k / 4, k % 4 * 8),
    }
}

/// The word and the bit of an int3 integer's high bit.
#[inline]
const fn high_place(k: usize) -> (usize, usize) {
    (k / BLOCK * 3 + 2, 8 * (k / 4 % 4) + 4 * (k % BLOCK / 16) + k % 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_survives_in_every_place() {
        for bits in [Bits::Int2, Bits::Int3, Bits::Int4, Bits::Int8] {
            for len in [1usize, 3, 7, 8, 9, 31, 32, 33, 172] {
                let row: Vec<u8> = (0..len).map(|i| ((i * 7 + 3) % (1 << bits.count())) as u8).collect();
                let mut words = Vec::new();
                pack_row(bits, &row, &mut words);
                assert_eq!(words.len(), bits.words(len));
                let back: Vec<u8> = (0..len).map(|k| unpack(bits, &words, k)).collect();
                assert_eq!(back, row);
            }
        }
    }

    /// Written out by hand: words that another program made must mean the same.
    #[test]
    fn the_layout_is_the_documented_one() {
        let with = |bits, k: usize, q: u8| {
            let mut row = [0; 64];
            row[k] = q;
            let mut words = Vec::new();
            pack_row(bits, &row, &mut words);
            words
        };
        assert_eq!(with(Bits::Int2, 0, 3), [3, 0, 0, 0]);
        assert_eq!(with(Bits::Int2, 17, 2), [0, 8, 0, 0]);
        assert_eq!(with(Bits::Int3, 1, 6), [8, 0, 2, 0, 0, 0]);
        assert_eq!(with(Bits::Int3, 4, 4), [0, 0, 1 << 8, 0, 0, 0]);
        assert_eq!(with(Bits::Int3, 16, 5), [0, 1, 1 << 4, 0, 0, 0]);
        assert_eq!(with(Bits::Int3, 31, 7), [0, 3 << 30, 1 << 31, 0, 0, 0]);
        assert_eq!(with(Bits::Int3, 32, 7), [0, 0, 0, 3, 0, 1]);
        assert_eq!(with(Bits::Int4, 9, 15), [0, 0xf0, 0, 0, 0, 0, 0, 0]);
    }
}
