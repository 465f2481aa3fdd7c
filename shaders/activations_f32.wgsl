// Float32 activations: a block of weights is unpacked to floats, its scale multiplies the block's dot product.
@group(2) @binding(1) var<storage, read> x: array<vec4<f32>>; // (T, K/4)

alias Inputs = Block;

struct WeightBlock {
    values: Block,
    scale: f32,
}

fn inputs(block: u32) -> Inputs {
    let i = block * 8u;
    return Block(x[i], x[i + 1u], x[i + 2u], x[i + 3u], x[i + 4u], x[i + 5u], x[i + 6u], x[i + 7u]);
}

fn weight_block(block: u32, scale: f32, zero: f32) -> WeightBlock {
    return WeightBlock(weights_f32(block, zero), scale);
}

fn product(w: WeightBlock, v: Inputs) -> f32 {
    return w.scale * dot_block(w.values, v);
}
