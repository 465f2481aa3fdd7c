// Prefill, tiled: a workgroup of 64 lanes computes 32 rows by 32 tokens. One block of each row and of each token goes
// through shared memory per step; half of the lanes unpack weights while the other half fetches inputs.
const TILE: u32 = 32u;

var<workgroup> weight_tile: array<WeightBlock, TILE>;
var<workgroup> input_tile: array<Inputs, TILE>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first_row = (lane.group.y * lane.groups.x + lane.group.x) * TILE;
    let first_token = lane.group.z * TILE;
    // The lane's own 4 x 4 corner: rows and tokens are eight apart, so that neighbours read neighbouring blocks.
    let row = lane.index / 8u;
    let token = lane.index % 8u;
    let fetch = lane.index % TILE;
    let fetch_row = min(first_row + fetch, params.rows - 1u);
    let fetch_x = (params.x_row + min(first_token + fetch, params.tokens - 1u)) * params.blocks;
    // One vector a row, one component a token.
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var c = 0u; c < params.blocks; c++) {
        if lane.index < TILE {
            weight_tile[fetch] = row_block(fetch_row, c);
        } else {
            input_tile[fetch] = inputs(fetch_x + c);
        }
        workgroupBarrier();
        for (var j = 0u; j < 4u; j++) {
            let v = input_tile[token + 8u * j];
            let at = vec4<f32>(vec4<u32>(j) == vec4<u32>(0u, 1u, 2u, 3u));
            s0 += at * product(weight_tile[row], v);
            s1 += at * product(weight_tile[row + 8u], v);
            s2 += at * product(weight_tile[row + 16u], v);
            s3 += at * product(weight_tile[row + 24u], v);
        }
        workgroupBarrier();
    }
    for (var j = 0u; j < 4u; j++) {
        finish(first_row + row, first_token + token + 8u * j, s0[j]);
        finish(first_row + row + 8u, first_token + token + 8u * j, s1[j]);
        finish(first_row + row + 16u, first_token + token + 8u * j, s2[j]);
        finish(first_row + row + 24u, first_token + token + 8u * j, s3[j]);
    }
}

fn finish(row: u32, token: u32, sum: f32) {
    var value = sum;
    if TAIL {
        if row < params.rows && token < params.tokens {
            for (var j = 0u; j < params.tail_chunks; j++) {
                value += tail(row, token, j);
            }
        }
    }
    store(row, token, value);
}
