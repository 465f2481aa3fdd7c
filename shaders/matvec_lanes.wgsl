// Decode, rows across lanes: a lane owns four rows and walks K, every lane reading the same inputs. No barrier, no
// shared memory: the fastest shape on software Vulkan, where the workgroup is one subgroup.
@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP * 4u + lane.index;
    let token = lane.group.z;
    // Rows past the end repeat the last one, so that every lane does the same; store drops them.
    let last = params.rows - 1u;
    let r0 = min(first, last);
    let r1 = min(first + WORKGROUP, last);
    let r2 = min(first + 2u * WORKGROUP, last);
    let r3 = min(first + 3u * WORKGROUP, last);
    let x0 = (params.x_row + token) * params.blocks;
    var sum = vec4<f32>(0.0);
    for (var c = 0u; c < params.blocks; c++) {
        let v = inputs(x0 + c);
        sum += vec4<f32>(
            product(row_block(r0, c), v),
            product(row_block(r1, c), v),
            product(row_block(r2, c), v),
            product(row_block(r3, c), v),
        );
    }
    if TAIL {
        for (var j = 0u; j < params.tail_chunks; j++) {
            sum += vec4<f32>(tail(r0, token, j), tail(r1, token, j), tail(r2, token, j), tail(r3, token, j));
        }
    }
    store(first, token, sum.x);
    store(first + WORKGROUP, token, sum.y);
    store(first + 2u * WORKGROUP, token, sum.z);
    store(first + 3u * WORKGROUP, token, sum.w);
}
