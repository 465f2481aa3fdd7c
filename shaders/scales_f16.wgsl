// Scales that float16 holds exactly, two a word.
@group(0) @binding(1) var<storage, read> scales: array<u32>; // (R * K/G / 2)

fn scale_of(row: u32, group: u32, groups: u32) -> f32 {
    let i = row * groups + group;
    let pair = unpack2x16float(scales[i >> 1u]);
    return select(pair.x, pair.y, (i & 1u) == 1u);
}
