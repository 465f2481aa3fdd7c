// int8 activations: integer dot products of a block, then weight scale times activation scale. The zero point is taken
// out through the block's sum, in integers.
@group(2) @binding(1) var<storage, read> x: array<vec4<u32>>; // (T, K/32, 3): 8 words of values; scale, sum, 0, 0

struct Inputs {
    words: Words,
    scale: f32,
    sum: i32,
}

struct WeightBlock {
    words: Words,
    scale: f32,
    zero: i32,
}

fn inputs(block: u32) -> Inputs {
    let i = block * 3u;
    let rest = x[i + 2u];
    return Inputs(Words(x[i], x[i + 1u]), bitcast<f32>(rest.x), bitcast<i32>(rest.y));
}

fn weight_block(block: u32, scale: f32, zero: f32) -> WeightBlock {
    return WeightBlock(weights_i8(block), scale * (1.0 / INT8_STEPS), i32(zero * INT8_STEPS - INT8_SHIFT));
}

fn product(w: WeightBlock, v: Inputs) -> f32 {
    let lo = dot4I8Packed(w.words.lo.x, v.words.lo.x) + dot4I8Packed(w.words.lo.y, v.words.lo.y)
        + dot4I8Packed(w.words.lo.z, v.words.lo.z) + dot4I8Packed(w.words.lo.w, v.words.lo.w);
    let hi = dot4I8Packed(w.words.hi.x, v.words.hi.x) + dot4I8Packed(w.words.hi.y, v.words.hi.y)
        + dot4I8Packed(w.words.hi.z, v.words.hi.z) + dot4I8Packed(w.words.hi.w, v.words.hi.w);
    return (w.scale * v.scale) * f32(lo + hi - w.zero * v.sum);
}
