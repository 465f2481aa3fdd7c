// The down half of the low-rank tail in float16, on devices with 16-bit storage: LoRA's A rows and recovery's D rows of all linears, step by step.
@group(1) @binding(0) var<storage, read> down: array<vec4<f16>>; // (blocks, 8)

fn down_block(block: u32) -> Block {
    let i = block * 8u;
    return Block(
        vec4<f32>(down[i]), vec4<f32>(down[i + 1u]), vec4<f32>(down[i + 2u]), vec4<f32>(down[i + 3u]),
        vec4<f32>(down[i + 4u]), vec4<f32>(down[i + 5u]), vec4<f32>(down[i + 6u]), vec4<f32>(down[i + 7u]),
    );
}
