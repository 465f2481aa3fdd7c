// The up half of the low-rank tail in float32: y += up · inner, eight ranks a chunk. Ranks are padded to chunks.
const TAIL: bool = true;

@group(1) @binding(0) var<storage, read> up: array<vec4<f32>>; // (chunks of all linears, 2)
@group(1) @binding(1) var<storage, read> inner: array<vec4<f32>>; // (T, ranks of the step / 4): scaling * act(down · x)

fn tail(row: u32, token: u32, chunk: u32) -> f32 {
    let i = (token * params.inner_stride + params.inner_offset + chunk) * 2u;
    let u = (params.up_first + row * params.tail_chunks + chunk) * 2u;
    return dot(up[u], inner[i]) + dot(up[u + 1u], inner[i + 1u]);
}
