// Zero points of an asymmetric scheme, packed along R as compressed-tensors stores them.
@group(0) @binding(2) var<storage, read> zeros: array<u32>; // (R * bits / 32, K/G)

fn zero_of(row: u32, group: u32, groups: u32) -> f32 {
    let word = zeros[(row / ZEROS_PER_WORD) * groups + group];
    let shift = (row % ZEROS_PER_WORD) * ZERO_BITS;
    return f32((word >> shift) & ((1u << ZERO_BITS) - 1u));
}
