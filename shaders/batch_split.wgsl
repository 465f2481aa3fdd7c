// Decode of several sequences, K across lanes: matvec_split for four tokens at once, so that a block of weights is read and
// unpacked once for all of them. Each token's sums are taken in the order of matvec_split: a token gives the same bits
// whoever shares its pass.
@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first = (lane.group.y * lane.groups.x + lane.group.x) * 4u;
    let token = lane.group.z * 4u;
    let last = params.rows - 1u;
    let r0 = min(first, last);
    let r1 = min(first + 1u, last);
    let r2 = min(first + 2u, last);
    let r3 = min(first + 3u, last);
    // Tokens past the end repeat the last one; store drops them.
    let t = min(vec4<u32>(token, token + 1u, token + 2u, token + 3u), vec4<u32>(params.tokens - 1u));
    let x0 = (params.x_row + t) * params.blocks;
    // One vector a token, one component a row.
    var s0 = vec4<f32>(0.0);
    var s1 = vec4<f32>(0.0);
    var s2 = vec4<f32>(0.0);
    var s3 = vec4<f32>(0.0);
    for (var c = lane.index; c < params.blocks; c += WORKGROUP) {
        let w0 = row_block(r0, c);
        let w1 = row_block(r1, c);
        let w2 = row_block(r2, c);
        let w3 = row_block(r3, c);
        let va = inputs(x0.x + c);
        s0 += vec4<f32>(product(w0, va), product(w1, va), product(w2, va), product(w3, va));
        let vb = inputs(x0.y + c);
        s1 += vec4<f32>(product(w0, vb), product(w1, vb), product(w2, vb), product(w3, vb));
        let vc = inputs(x0.z + c);
        s2 += vec4<f32>(product(w0, vc), product(w1, vc), product(w2, vc), product(w3, vc));
        let vd = inputs(x0.w + c);
        s3 += vec4<f32>(product(w0, vd), product(w1, vd), product(w2, vd), product(w3, vd));
    }
    if TAIL {
        for (var j = lane.index; j < params.tail_chunks; j += WORKGROUP) {
            s0 += vec4<f32>(tail(r0, t.x, j), tail(r1, t.x, j), tail(r2, t.x, j), tail(r3, t.x, j));
            s1 += vec4<f32>(tail(r0, t.y, j), tail(r1, t.y, j), tail(r2, t.y, j), tail(r3, t.y, j));
            s2 += vec4<f32>(tail(r0, t.z, j), tail(r1, t.z, j), tail(r2, t.z, j), tail(r3, t.z, j));
            s3 += vec4<f32>(tail(r0, t.w, j), tail(r1, t.w, j), tail(r2, t.w, j), tail(r3, t.w, j));
        }
    }
    let a = workgroup_sum(s0, lane);
    let b = workgroup_sum(s1, lane);
    let c = workgroup_sum(s2, lane);
    let d = workgroup_sum(s3, lane);
    if lane.index < 4u {
        store(first + lane.index, token, a[lane.index]);
        store(first + lane.index, token + 1u, b[lane.index]);
        store(first + lane.index, token + 2u, c[lane.index]);
        store(first + lane.index, token + 3u, d[lane.index]);
    }
}
