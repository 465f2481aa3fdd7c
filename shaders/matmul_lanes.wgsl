// Prefill, rows across lanes: a lane owns four rows and four tokens; a block of weights is unpacked once and meets
// each token's inputs, which all lanes read alike.
@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP * 4u + lane.index;
    let token = lane.group.z * 4u;
    let last = params.rows - 1u;
    let r0 = min(first, last);
    let r1 = min(first + WORKGROUP, last);
    let r2 = min(first + 2u * WORKGROUP, last);
    let r3 = min(first + 3u * WORKGROUP, last);
    // Tokens past the end repeat the last one; store drops them.
    let t = min(vec4<u32>(token, token + 1u, token + 2u, token + 3u), vec4<u32>(params.tokens - 1u));
    let x0 = (params.x_row + t) * params.blocks;
    // One vector a row, one component a token.
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var c = 0u; c < params.blocks; c++) {
        let va = inputs(x0.x + c);
        let vb = inputs(x0.y + c);
        let vc = inputs(x0.z + c);
        let vd = inputs(x0.w + c);
        let w0 = row_block(r0, c);
        s0 += vec4<f32>(product(w0, va), product(w0, vb), product(w0, vc), product(w0, vd));
        let w1 = row_block(r1, c);
        s1 += vec4<f32>(product(w1, va), product(w1, vb), product(w1, vc), product(w1, vd));
        let w2 = row_block(r2, c);
        s2 += vec4<f32>(product(w2, va), product(w2, vb), product(w2, vc), product(w2, vd));
        let w3 = row_block(r3, c);
        s3 += vec4<f32>(product(w3, va), product(w3, vb), product(w3, vc), product(w3, vd));
    }
    if TAIL {
        for (var j = 0u; j < params.tail_chunks; j++) {
            s0 += vec4<f32>(tail(r0, t.x, j), tail(r0, t.y, j), tail(r0, t.z, j), tail(r0, t.w, j));
            s1 += vec4<f32>(tail(r1, t.x, j), tail(r1, t.y, j), tail(r1, t.z, j), tail(r1, t.w, j));
            s2 += vec4<f32>(tail(r2, t.x, j), tail(r2, t.y, j), tail(r2, t.z, j), tail(r2, t.w, j));
            s3 += vec4<f32>(tail(r3, t.x, j), tail(r3, t.y, j), tail(r3, t.z, j), tail(r3, t.w, j));
        }
    }
    for (var i = 0u; i < 4u; i++) {
        store(first, token + i, s0[i]);
        store(first + WORKGROUP, token + i, s1[i]);
        store(first + 2u * WORKGROUP, token + i, s2[i]);
        store(first + 3u * WORKGROUP, token + i, s3[i]);
    }
}
