// Joins the spans of split attention: each is weighted by how its largest score compares with the overall one.
struct Params {
    tokens: u32, // T
    heads: u32,  // H
    dim: u32,    // D
    splits: u32,
    stride: u32, // elements per row of the attended slot
    row: u32,    // of the attended slot, where the first token stands
    pad0: u32,
    pad1: u32,
}

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> spans: array<f32>; // (T, H, splits, D + 2): sums, largest score, total
@group(2) @binding(2) var<storage, read_write> attended: array<f32>; // (T, H * D)

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let work = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP + lane.index;
    let width = params.heads * params.dim;
    if work >= params.tokens * width {
        return;
    }
    let d = work % params.dim;
    let size = params.dim + 2u;
    let first = (work / params.dim) * params.splits * size;
    var largest = -3.0e38;
    for (var s = 0u; s < params.splits; s++) {
        largest = max(largest, spans[first + s * size + params.dim]);
    }
    var sum = 0.0;
    var total = 0.0;
    for (var s = 0u; s < params.splits; s++) {
        let at = first + s * size;
        let weight = exp(spans[at + params.dim] - largest);
        sum += weight * spans[at + d];
        total += weight * spans[at + params.dim + 1u];
    }
    attended[(params.row + work / width) * params.stride + work % width] = sum / total;
}
