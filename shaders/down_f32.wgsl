// The down half of the low-rank tail in float32: LoRA's A rows and recovery's D rows of all linears, step by step.
@group(1) @binding(0) var<storage, read> down: array<vec4<f32>>; // (blocks, 8)

fn down_block(block: u32) -> Block {
    let i = block * 8u;
    return Block(
        down[i], down[i + 1u], down[i + 2u], down[i + 3u],
        down[i + 4u], down[i + 5u], down[i + 6u], down[i + 7u],
    );
}
