// int3 weights, mid-rise (runtime/quant/mod.rs): a block is two words of low bits, as int2, and one of high bits, in the
// order of the low words' bytes: the first word's in the low nibbles, the second's in the high ones.
@group(0) @binding(0) var<storage, read> weights: array<u32>; // (R, K/32, 3)

const SYMMETRIC_ZERO: f32 = 3.5;
const INT8_STEPS: f32 = 2.0;
const INT8_SHIFT: f32 = 0.0;

// The weights of byte `j` of a word, whose high bits are in the low nibbles of `high`.
fn threes(word: u32, high: u32, j: u32) -> vec4<f32> {
    let low = (vec4<u32>(word) >> (vec4<u32>(0u, 2u, 4u, 6u) + 8u * j)) & vec4<u32>(3u);
    let bit = (vec4<u32>(high) >> (vec4<u32>(0u, 1u, 2u, 3u) + 8u * j)) & vec4<u32>(1u);
    return vec4<f32>(low | (bit << vec4<u32>(2u)));
}

fn weights_f32(block: u32, zero: f32) -> Block {
    let p = weights[block * 3u];
    let q = weights[block * 3u + 1u];
    let h = weights[block * 3u + 2u];
    let i = h >> 4u;
    let z = vec4<f32>(zero);
    return Block(
        threes(p, h, 0u) - z, threes(p, h, 1u) - z, threes(p, h, 2u) - z, threes(p, h, 3u) - z,
        threes(q, i, 0u) - z, threes(q, i, 1u) - z, threes(q, i, 2u) - z, threes(q, i, 3u) - z,
    );
}

// Each fourth weight of a word, doubled, without its high bit.
fn fourths(word: u32) -> vec4<u32> {
    return vec4<u32>(word << 1u, word >> 1u, word >> 3u, word >> 5u) & vec4<u32>(0x06060606u);
}

fn weights_i8(block: u32) -> Words {
    let p = weights[block * 3u];
    let q = weights[block * 3u + 1u];
    let h = weights[block * 3u + 2u];
    let first = vec4<u32>(h << 3u, h << 2u, h << 1u, h) & vec4<u32>(0x08080808u);
    let second = vec4<u32>(h >> 1u, h >> 2u, h >> 3u, h >> 4u) & vec4<u32>(0x08080808u);
    return Words(fourths(p) | first, fourths(q) | second);
}
