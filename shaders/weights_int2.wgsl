// int2 weights, mid-rise (runtime/quant/mod.rs): 16 a word, lowest bits first, a block a vec2. Levels lie at halves.
@group(0) @binding(0) var<storage, read> weights: array<vec2<u32>>; // (R, K/32)

const SYMMETRIC_ZERO: f32 = 1.5;
const INT8_STEPS: f32 = 2.0;
const INT8_SHIFT: f32 = 0.0;

fn crumbs(word: u32, first: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> (vec4<u32>(0u, 2u, 4u, 6u) + first)) & vec4<u32>(3u));
}

fn weights_f32(block: u32, zero: f32) -> Block {
    let q = weights[block];
    let z = vec4<f32>(zero);
    return Block(
        crumbs(q.x, 0u) - z, crumbs(q.x, 8u) - z, crumbs(q.x, 16u) - z, crumbs(q.x, 24u) - z,
        crumbs(q.y, 0u) - z, crumbs(q.y, 8u) - z, crumbs(q.y, 16u) - z, crumbs(q.y, 24u) - z,
    );
}

// Each fourth weight of a word, doubled: the mask takes it one bit above its place.
fn fourths(word: u32) -> vec4<u32> {
    return vec4<u32>(word << 1u, word >> 1u, word >> 3u, word >> 5u) & vec4<u32>(0x06060606u);
}

fn weights_i8(block: u32) -> Words {
    let q = weights[block];
    return Words(fourths(q.x), fourths(q.y));
}
