// Scales that float16 cannot hold exactly.
@group(0) @binding(1) var<storage, read> scales: array<f32>; // (R, K/G)

fn scale_of(row: u32, group: u32, groups: u32) -> f32 {
    return scales[row * groups + group];
}
