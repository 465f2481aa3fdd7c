// What the projection kernels share: parameters, one block of a weight row, and what happens to a result.
struct Params {
    rows: u32,         // R of this part of the matrix
    blocks: u32,       // K / 32
    groups: u32,       // scales per row
    group_blocks: u32, // blocks per scale
    x_row: u32,        // the first input row
    tokens: u32,       // T
    y_row: u32,        // the first output row
    y_stride: u32,     // elements per output row
    y_column: u32,     // where this part's rows start in an output row
    mode: u32,         // STORE, ADD or GATE
    has_bias: u32,
    tail_chunks: u32,  // r / 8 of this linear
    inner_stride: u32, // r / 8 of all linears of the step
    inner_offset: u32, // this linear's first chunk among them
    up_first: u32,     // this linear's first chunk among those of its adapter
    pad0: u32,
}

const STORE: u32 = 0u;
const ADD: u32 = 1u;
const GATE: u32 = 2u;

@group(0) @binding(3) var<storage, read> bias: array<f32>; // (R)
@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(2) var<storage, read_write> y: array<f32>; // (T, width of the slot)

// Block `c` of weight row `row`.
fn row_block(row: u32, c: u32) -> WeightBlock {
    let group = c / params.group_blocks;
    return weight_block(
        row * params.blocks + c,
        scale_of(row, group, params.groups),
        zero_of(row, group, params.groups),
    );
}

// x * sigmoid(x); the exponent is bounded because WGSL leaves the overflow of exp open.
fn silu(v: f32) -> f32 {
    return v / (1.0 + exp(min(-v, 80.0)));
}

// The epilogue: bias, then to the residual, to the gate that is already in y, or just to y.
fn store(row: u32, token: u32, sum: f32) {
    if row >= params.rows || token >= params.tokens {
        return;
    }
    let i = (params.y_row + token) * params.y_stride + params.y_column + row;
    var value = sum;
    if params.has_bias != 0u {
        value += bias[row];
    }
    if params.mode == ADD {
        value += y[i];
    } else if params.mode == GATE {
        value *= silu(y[i]);
    }
    y[i] = value;
}
