// The up half of the low-rank tail in float16 pairs: y += up · inner, eight ranks a chunk. Ranks are padded to chunks.
const TAIL: bool = true;

@group(1) @binding(0) var<storage, read> up: array<vec4<u32>>; // (chunks of all linears)
@group(1) @binding(1) var<storage, read> inner: array<vec4<f32>>; // (T, ranks of the step / 4): scaling * act(down · x)

fn tail(row: u32, token: u32, chunk: u32) -> f32 {
    let i = (token * params.inner_stride + params.inner_offset + chunk) * 2u;
    let u = up[params.up_first + row * params.tail_chunks + chunk];
    let lo = vec4<f32>(unpack2x16float(u.x), unpack2x16float(u.y));
    let hi = vec4<f32>(unpack2x16float(u.z), unpack2x16float(u.w));
    return dot(lo, inner[i]) + dot(hi, inner[i + 1u]);
}
