// Rounds a block to int8 with scale = max |x| / 127, ties to even, as runtime/quant/activations.rs defines it.
@group(2) @binding(3) var<storage, read_write> quantised: array<vec4<u32>>; // (T, K/32, 3), see activations_int8

// Even elements of each eight, then odd ones: the order in which masking yields int4 weights.
const EVEN_ODD: u32 = 1u;
// Each fourth element of each sixteen: the order in which masking yields int2 and int3 weights.
const FOURTHS: u32 = 2u;

fn largest(v: vec4<f32>) -> f32 {
    let a = abs(v);
    return max(max(a.x, a.y), max(a.z, a.w));
}

struct Sixteen {
    words: vec4<u32>,
    sum: i32,
}

// Sixteen values as four words, and their sum.
fn sixteen(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, inverse: f32) -> Sixteen {
    let p = vec4<i32>(round(a * inverse));
    let q = vec4<i32>(round(b * inverse));
    let r = vec4<i32>(round(c * inverse));
    let s = vec4<i32>(round(d * inverse));
    let sums = p + q + r + s;
    let sum = sums.x + sums.y + sums.z + sums.w;
    if params.order == EVEN_ODD {
        let first = pack(vec4<i32>(p.x, p.z, q.x, q.z));
        let second = pack(vec4<i32>(p.y, p.w, q.y, q.w));
        let third = pack(vec4<i32>(r.x, r.z, s.x, s.z));
        return Sixteen(vec4<u32>(first, second, third, pack(vec4<i32>(r.y, r.w, s.y, s.w))), sum);
    }
    if params.order == FOURTHS {
        let first = pack(vec4<i32>(p.x, q.x, r.x, s.x));
        let second = pack(vec4<i32>(p.y, q.y, r.y, s.y));
        let third = pack(vec4<i32>(p.z, q.z, r.z, s.z));
        return Sixteen(vec4<u32>(first, second, third, pack(vec4<i32>(p.w, q.w, r.w, s.w))), sum);
    }
    return Sixteen(vec4<u32>(pack(p), pack(q), pack(r), pack(s)), sum);
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
    let lo = sixteen(v.a, v.b, v.c, v.d, inverse);
    let hi = sixteen(v.e, v.f, v.g, v.h, inverse);
    let i = block * 3u;
    quantised[i] = lo.words;
    quantised[i + 1u] = hi.words;
    quantised[i + 2u] = vec4<u32>(bitcast<u32>(scale), bitcast<u32>(lo.sum + hi.sum), 0u, 0u);
}
