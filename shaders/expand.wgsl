// What one adapter adds to its rows of a batch, on its own: summed[t, r] = up[r] · inner[t]. Zero where it has no branch
// (no chunks). A lane an element.
struct Params {
    rows: u32,         // R of this part of the matrix
    tokens: u32,       // T of this adapter
    tail_chunks: u32,  // r / 8 of this linear
    inner_stride: u32, // r / 8 of all linears of the step
    inner_offset: u32, // this linear's first chunk among them
    y_row: u32,        // the first output row
    y_stride: u32,     // elements per output row
    y_column: u32,     // where this part's rows start in an output row
}

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read_write> summed: array<f32>; // (T of the batch, R of the whole matrix)

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let work = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP + lane.index;
    if work >= params.rows * params.tokens {
        return;
    }
    let row = work % params.rows;
    let token = work / params.rows;
    var sum = 0.0;
    for (var j = 0u; j < params.tail_chunks; j++) {
        sum += tail(row, token, j);
    }
    summed[(params.y_row + token) * params.y_stride + params.y_column + row] = sum;
}
