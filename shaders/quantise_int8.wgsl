// Rounds a block to int8 with scale = max |x| / 127, ties to even, as runtime/quant/activations.rs defines it.
@group(2) @binding(3) var<storage, read_write> quantised: array<vec4<u32>>; // (T, K/32, 3), see activations_int8

// Even elements of each eight, then odd ones: the order in which masking yields int4 weights.
const EVEN_ODD: u32 = 1u;

fn largest(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}

// Eight values as two words, and their sum.
fn octet(lo: vec4<f32>, hi: vec4<f32>, inverse: f32) -> vec3<i32> {
    let p = vec4<i32>(round(lo * inverse));
    let q = vec4<i32>(round(hi * inverse));
    let first = select(p, vec4<i32>(p.x, p.z, q.x, q.z), params.order == EVEN_ODD);
    let second = select(q, vec4<i32>(p.y, p.w, q.y, q.w), params.order == EVEN_ODD);
    let s = p + q;
    return vec3<i32>(bitcast<i32>(pack(first)), bitcast<i32>(pack(second)), s.x + s.y + s.z + s.w);
}

fn pack(v: vec4<i32>) -> u32 {
    let b = bitcast<vec4<u32>>(v) & vec4<u32>(255u);
    return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}

fn quantise(block: u32, v: Block) {
    let m = max(
        max(max(largest(v.a), largest(v.b)), max(largest(v.c), largest(v.d))),
        max(max(largest(v.e), largest(v.f)), max(largest(v.g), largest(v.h))),
    );
    let scale = m / 127.0;
    var inverse = 0.0;
    if scale > 0.0 {
        inverse = 1.0 / scale;
    }
    let o0 = octet(v.a, v.b, inverse);
    let o1 = octet(v.c, v.d, inverse);
    let o2 = octet(v.e, v.f, inverse);
    let o3 = octet(v.g, v.h, inverse);
    let i = block * 3u;
    quantised[i] = bitcast<vec4<u32>>(vec4<i32>(o0.xy, o1.xy));
    quantised[i + 1u] = bitcast<vec4<u32>>(vec4<i32>(o2.xy, o3.xy));
    quantised[i + 2u] = vec4<u32>(bitcast<u32>(scale), bitcast<u32>(o0.z + o1.z + o2.z + o3.z), 0u, 0u);
}
