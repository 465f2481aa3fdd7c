// What the adapters of a batch add, each to its own rows, as expand.wgsl has it: chunk by chunk, so that a row's sum is
// taken in the order in which a fused tail takes it.
const TAIL: bool = true;

@group(1) @binding(0) var<storage, read> expanded: array<f32>; // (T, R of the whole matrix, tail_chunks)

// inner_stride is R of the whole matrix, inner_offset where this part's rows start.
fn tail(row: u32, token: u32, chunk: u32) -> f32 {
    return expanded[(token * params.inner_stride + params.inner_offset + row) * params.tail_chunks + chunk];
}
