// What the linears of a step read: the input row, RMS-normed where the step asks for it, as float32 and, for int8
// activations, rounded. A workgroup owns one token.
struct Params {
    blocks: u32,    // K / 32
    cols: u32,      // K
    first_row: u32, // the first input row
    normalise: u32, // 0: the input as it is
    keep: u32,      // 0: do not write float32
    order: u32,     // of the rounded values, see quantise_int8
    epsilon: f32,
    pad0: u32,
}

@group(0) @binding(0) var<storage, read> norm: array<vec4<f32>>; // (K/4)
@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> input: array<vec4<f32>>; // (T, K/4)
@group(2) @binding(2) var<storage, read_write> prepared: array<vec4<f32>>; // (T, K/4)

fn input_block(block: u32) -> Block {
    let i = block * 8u;
    return Block(
        input[i], input[i + 1u], input[i + 2u], input[i + 3u],
        input[i + 4u], input[i + 5u], input[i + 6u], input[i + 7u],
    );
}

fn scaled(v: Block, block: u32, factor: f32) -> Block {
    let i = block * 8u;
    return Block(
        v.a * factor * norm[i], v.b * factor * norm[i + 1u],
        v.c * factor * norm[i + 2u], v.d * factor * norm[i + 3u],
        v.e * factor * norm[i + 4u], v.f * factor * norm[i + 5u],
        v.g * factor * norm[i + 6u], v.h * factor * norm[i + 7u],
    );
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let token = lane.group.x;
    let from_block = (params.first_row + token) * params.blocks;
    let to_block = token * params.blocks;
    var factor = 1.0;
    if params.normalise != 0u {
        var squares = 0.0;
        for (var c = lane.index; c < params.blocks; c += WORKGROUP) {
            let v = input_block(from_block + c);
            squares += dot_block(v, v);
        }
        let total = workgroup_sum(vec4<f32>(squares), lane).x;
        factor = 1.0 / sqrt(total / f32(params.cols) + params.epsilon);
    }
    for (var c = lane.index; c < params.blocks; c += WORKGROUP) {
        var v = input_block(from_block + c);
        if params.normalise != 0u {
            v = scaled(v, c, factor);
        }
        if params.keep != 0u {
            let i = (to_block + c) * 8u;
            prepared[i] = v.a;
            prepared[i + 1u] = v.b;
            prepared[i + 2u] = v.c;
            prepared[i + 3u] = v.d;
            prepared[i + 4u] = v.e;
            prepared[i + 5u] = v.f;
            prepared[i + 6u] = v.g;
            prepared[i + 7u] = v.h;
        }
        quantise(to_block + c, v);
    }
}
