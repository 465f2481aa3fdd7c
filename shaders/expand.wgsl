// What one adapter adds to its rows of a batch, on its own: expanded[t, r, c] = up[r, c] · inner[t, c] for each chunk c of
// eight ranks. Zero past the adapter's chunks, and everywhere where it has no branch. A lane an element.
struct Params {
    rows: u32,         // R of this part of the matrix
    tokens: u32,       // T of this adapter
    tail_chunks: u32,  // r / 8 of this linear
    inner_stride: u32, // r / 8 of all linears of the step
    inner_offset: u32, // this linear's first chunk among them
    y_row: u32,        // the first output row
    y_stride: u32,     // R of the whole matrix
    y_column: u32,     // where this part's rows start
    y_chunks: u32,     // the most chunks of any adapter of the batch
    up_first: u32,     // this linear's first chunk among those of its adapter
    pad0: u32,
    pad1: u32,
}

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read_write> expanded: array<f32>; // (T of the batch, R of the whole matrix, y_chunks)

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let work = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP + lane.index;
    if work >= params.rows * params.tokens * params.y_chunks {
        return;
    }
    let chunk = work % params.y_chunks;
    let row = (work / params.y_chunks) % params.rows;
    let token = work / (params.y_chunks * params.rows);
    var value = 0.0;
    if chunk < params.tail_chunks {
        value = tail(row, token, chunk);
    }
    let line = (params.y_row + token) * params.y_stride + params.y_column + row;
    expanded[line * params.y_chunks + chunk] = value;
}
