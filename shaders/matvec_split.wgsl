// Decode, K across lanes: a workgroup owns four rows, neighbouring lanes read neighbouring blocks of a row, and the
// partial sums meet in one reduction that the low-rank tail joins.
@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first = (lane.group.y * lane.groups.x + lane.group.x) * 4u;
    let token = lane.group.z;
    let last = params.rows - 1u;
    let r0 = min(first, last);
    let r1 = min(first + 1u, last);
    let r2 = min(first + 2u, last);
    let r3 = min(first + 3u, last);
    let x0 = (params.x_row + token) * params.blocks;
    var sum = vec4<f32>(0.0);
    for (var c = lane.index; c < params.blocks; c += WORKGROUP) {
        let v = inputs(x0 + c);
        sum += vec4<f32>(
            product(row_block(r0, c), v),
            product(row_block(r1, c), v),
            product(row_block(r2, c), v),
            product(row_block(r3, c), v),
        );
    }
    if TAIL {
        for (var j = lane.index; j < params.tail_chunks; j += WORKGROUP) {
            sum += vec4<f32>(tail(r0, token, j), tail(r1, token, j), tail(r2, token, j), tail(r3, token, j));
        }
    }
    let total = workgroup_sum(sum, lane);
    if lane.index < 4u {
        store(first + lane.index, token, total[lane.index]);
    }
}
