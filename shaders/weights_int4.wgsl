// int4 weights as compressed-tensors stores them: eight a word, lowest nibble first, a block a vec4.
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>; // (R, K/32)

// The stored value of weight zero in a symmetric scheme, and how zero points are packed along R.
const SYMMETRIC_ZERO: f32 = 8.0;
const ZEROS_PER_WORD: u32 = 8u;
const ZERO_BITS: u32 = 4u;
// What weights_i8 returns is the stored value times the steps minus the shift.
const INT8_STEPS: f32 = 1.0;
const INT8_SHIFT: f32 = 0.0;

fn nibbles(word: u32, shift: vec4<u32>) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> shift) & vec4<u32>(15u));
}

fn weights_f32(block: u32, zero: f32) -> Block {
    let q = weights[block];
    let lo = vec4<u32>(0u, 4u, 8u, 12u);
    let hi = vec4<u32>(16u, 20u, 24u, 28u);
    let z = vec4<f32>(zero);
    return Block(
        nibbles(q.x, lo) - z, nibbles(q.x, hi) - z, nibbles(q.y, lo) - z, nibbles(q.y, hi) - z,
        nibbles(q.z, lo) - z, nibbles(q.z, hi) - z, nibbles(q.w, lo) - z, nibbles(q.w, hi) - z,
    );
}

// For each word its even elements, then its odd ones; inputs_int8 come in the same order.
fn weights_i8(block: u32) -> Words {
    let q = weights[block];
    let even = q & vec4<u32>(0x0f0f0f0fu);
    let odd = (q >> vec4<u32>(4u)) & vec4<u32>(0x0f0f0f0fu);
    return Words(vec4<u32>(even.x, odd.x, even.y, odd.y), vec4<u32>(even.z, odd.z, even.w, odd.w));
}
