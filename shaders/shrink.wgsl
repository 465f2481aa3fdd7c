// The inner values of the low-rank tail, for all linears that share an input:
//     inner[i] = scaling[i] * scale of its adapter * act(down[i] · x)
// A workgroup owns four ranks of one token, K across lanes. LoRA rows have no activation, recovery rows an exact GELU.
struct Params {
    rows: u32,   // ranks of all linears of the step, a multiple of 8
    blocks: u32, // K / 32
    x_row: u32,  // the first input row
    inner_row: u32, // the first output row: an adapter's groups of rows, each with its scales, lie one behind the other
    down_first: u32,   // the first block of the step among all of its adapter
    factor_first: u32, // likewise its first rank
    pad0: u32,
    pad1: u32,
    scales: array<vec4<f32>, 3>, // one for each adapter
}

@group(1) @binding(1) var<storage, read> factors: array<vec2<f32>>; // (ranks of all steps): scaling; twice the adapter, plus 1 where a GELU stands
@group(1) @binding(2) var<storage, read_write> inner: array<f32>; // (T, r)
@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> x: array<vec4<f32>>; // (T, K/4)

// Abramowitz and Stegun, Handbook of Mathematical Functions, formula 7.1.26: |error| <= 1.5e-7.
fn erf(v: f32) -> f32 {
    let a = abs(v);
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    // Past 9 the value is 1 in float32; the bound keeps the square from overflowing.
    let b = min(a, 9.0);
    return sign(v) * (1.0 - p * exp(-b * b));
}

fn gelu(v: f32) -> f32 {
    return 0.5 * v * (1.0 + erf(v * 0.70710678));
}

fn input_block(block: u32) -> Block {
    let i = block * 8u;
    return Block(x[i], x[i + 1u], x[i + 2u], x[i + 3u], x[i + 4u], x[i + 5u], x[i + 6u], x[i + 7u]);
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first = lane.group.x * 4u;
    let token = lane.group.y;
    let x0 = (params.x_row + token) * params.blocks;
    let row = params.down_first + first * params.blocks;
    var sum = vec4<f32>(0.0);
    for (var c = lane.index; c < params.blocks; c += WORKGROUP) {
        let v = input_block(x0 + c);
        sum += vec4<f32>(
            dot_block(down_block(row + c), v),
            dot_block(down_block(row + params.blocks + c), v),
            dot_block(down_block(row + 2u * params.blocks + c), v),
            dot_block(down_block(row + 3u * params.blocks + c), v),
        );
    }
    let total = workgroup_sum(sum, lane);
    if lane.index < 4u {
        let factor = factors[params.factor_first + first + lane.index];
        let kind = u32(factor.y);
        let scale = params.scales[kind / 8u][(kind / 2u) % 4u];
        var value = total[lane.index];
        if kind % 2u != 0u {
            value = gelu(value);
        }
        // What is scaled to nothing is nothing, whatever its branch gave.
        inner[(params.inner_row + token) * params.rows + first + lane.index] = select(factor.x * scale * value, 0.0, scale == 0.0);
    }
}
