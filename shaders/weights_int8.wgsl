// int8 weights as compressed-tensors stores them: four a word, unsigned with offset 128, a block two vec4.
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>; // (R, K/16)

const SYMMETRIC_ZERO: f32 = 128.0;
const ZEROS_PER_WORD: u32 = 4u;
const ZERO_BITS: u32 = 8u;
const INT8_STEPS: f32 = 1.0;
const INT8_SHIFT: f32 = 128.0;

fn bytes(word: u32) -> vec4<f32> {
    return vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(255u));
}

fn weights_f32(block: u32, zero: f32) -> Block {
    let p = weights[block * 2u];
    let q = weights[block * 2u + 1u];
    let z = vec4<f32>(zero);
    return Block(
        bytes(p.x) - z, bytes(p.y) - z, bytes(p.z) - z, bytes(p.w) - z,
        bytes(q.x) - z, bytes(q.y) - z, bytes(q.z) - z, bytes(q.w) - z,
    );
}

// Flipping the top bit turns offset 128 into two's complement.
fn weights_i8(block: u32) -> Words {
    let flip = vec4<u32>(0x80808080u);
    return Words(weights[block * 2u] ^ flip, weights[block * 2u + 1u] ^ flip);
}
