// Dense float32 weights.
@group(0) @binding(0) var<storage, read> weights: array<vec4<f32>>; // (R, K/4)

fn weights_f32(block: u32, zero: f32) -> Block {
    let i = block * 8u;
    return Block(
        weights[i], weights[i + 1u], weights[i + 2u], weights[i + 3u],
        weights[i + 4u], weights[i + 5u], weights[i + 6u], weights[i + 7u],
    );
}
