// What the adapters of a batch add, each to its own rows, summed by expand.wgsl.
const TAIL: bool = true;

@group(1) @binding(0) var<storage, read> summed: array<f32>; // (T, R of the whole matrix)

// There is one chunk; inner_stride is R, inner_offset where this part's rows start.
fn tail(row: u32, token: u32, chunk: u32) -> f32 {
    return summed[token * params.inner_stride + params.inner_offset + row];
}
