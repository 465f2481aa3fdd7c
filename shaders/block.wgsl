// 32 consecutive values along K: the step in which every kernel walks a row. Rows are padded to whole blocks.
struct Block {
    a: vec4<f32>,
    b: vec4<f32>,
    c: vec4<f32>,
    d: vec4<f32>,
    e: vec4<f32>,
    f: vec4<f32>,
    g: vec4<f32>,
    h: vec4<f32>,
}

// 32 int8 values, four a word.
struct Words {
    lo: vec4<u32>,
    hi: vec4<u32>,
}

fn dot_block(u: Block, v: Block) -> f32 {
    return ((dot(u.a, v.a) + dot(u.b, v.b)) + (dot(u.c, v.c) + dot(u.d, v.d)))
        + ((dot(u.e, v.e) + dot(u.f, v.f)) + (dot(u.g, v.g) + dot(u.h, v.h)));
}
