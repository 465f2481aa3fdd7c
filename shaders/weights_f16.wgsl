// Dense float16 weights, two a word.
@group(0) @binding(0) var<storage, read> weights: array<vec4<u32>>; // (R, K/8)

fn halves(lo: u32, hi: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(lo), unpack2x16float(hi));
}

fn weights_f32(block: u32, zero: f32) -> Block {
    let i = block * 4u;
    let p = weights[i];
    let q = weights[i + 1u];
    let r = weights[i + 2u];
    let s = weights[i + 3u];
    return Block(
        halves(p.x, p.y), halves(p.z, p.w), halves(q.x, q.y), halves(q.z, q.w),
        halves(r.x, r.y), halves(r.z, r.w), halves(s.x, s.y), halves(s.z, s.w),
    );
}
