// Gathers embedding rows into the residual: a lane unpacks one block of one token. A table that is split by rows
// takes one dispatch a part, each writing only the tokens whose rows it has.
struct Params {
    first_row: u32,    // of this part of the table
    rows: u32,         // in this part
    blocks: u32,       // C / 32
    cols: u32,         // C
    groups: u32,       // scales per row
    group_blocks: u32, // blocks per scale
    tokens: u32,       // T
    pad0: u32,
}

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> tokens: array<u32>; // (T)
@group(2) @binding(2) var<storage, read_write> residual: array<vec4<f32>>; // (T, C/4)

// Padding beyond C must be zero; in a packed table it is not, because there zero is the stored zero point.
fn write(i: u32, column: u32, v: vec4<f32>, scale: f32) {
    let columns = vec4<u32>(column, column + 1u, column + 2u, column + 3u);
    residual[i] = select(vec4<f32>(0.0), v * scale, columns < vec4<u32>(params.cols));
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let work = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP + lane.index;
    if work >= params.tokens * params.blocks {
        return;
    }
    let token = work / params.blocks;
    let c = work % params.blocks;
    let id = tokens[token];
    if id < params.first_row || id - params.first_row >= params.rows {
        return;
    }
    let row = id - params.first_row;
    let group = c / params.group_blocks;
    let scale = scale_of(row, group, params.groups);
    let v = weights_f32(row * params.blocks + c, zero_of(row, group, params.groups));
    let i = work * 8u;
    let k = c * 32u;
    write(i, k, v.a, scale);
    write(i + 1u, k + 4u, v.b, scale);
    write(i + 2u, k + 8u, v.c, scale);
    write(i + 3u, k + 12u, v.d, scale);
    write(i + 4u, k + 16u, v.e, scale);
    write(i + 5u, k + 20u, v.f, scale);
    write(i + 6u, k + 24u, v.g, scale);
    write(i + 7u, k + 28u, v.h, scale);
}
