// Rotates keys and appends keys and values to a layer's cache: a lane writes four elements of each.
struct Params {
    tokens: u32,   // T
    position: u32, // of the first token
    capacity: u32, // S of the cache
    kv_heads: u32,
    dim: u32,      // D, even
    chunks: u32,   // D / 4, rounded up
    stride: u32,   // elements per row of the key and value slots
    row: u32,      // of the slots, where the first token stands
}

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> key: array<f32>; // (T, KV heads * D)
@group(2) @binding(2) var<storage, read> value: array<f32>; // (T, KV heads * D)
@group(2) @binding(3) var<storage, read> angles: array<vec2<f32>>; // (T, D/2): cosine, sine
@group(2) @binding(4) var<storage, read_write> keys: array<Stored>; // (KV heads, S, D/4)
@group(2) @binding(5) var<storage, read_write> values: array<Stored>; // (KV heads, S, D/4)

// Pairs are (i, i + D/2), as Hugging Face stores them.
fn rotated(row: u32, token: u32, d: u32) -> f32 {
    let half = params.dim / 2u;
    if d >= params.dim {
        return 0.0;
    }
    let angle = angles[token * half + d % half];
    if d < half {
        return key[row + d] * angle.x - key[row + d + half] * angle.y;
    }
    return key[row + d] * angle.x + key[row + d - half] * angle.y;
}

fn plain(row: u32, d: u32) -> f32 {
    if d >= params.dim {
        return 0.0;
    }
    return value[row + d];
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let work = (lane.group.y * lane.groups.x + lane.group.x) * WORKGROUP + lane.index;
    let per_token = params.kv_heads * params.chunks;
    if work >= params.tokens * per_token {
        return;
    }
    let token = work / per_token;
    let head = work % per_token / params.chunks;
    let chunk = work % params.chunks;
    let slot = params.row + token;
    let row = slot * params.stride + head * params.dim;
    let d = chunk * 4u;
    let i = (head * params.capacity + params.position + token) * params.chunks + chunk;
    keys[i] = to_stored(vec4<f32>(
        rotated(row, slot, d), rotated(row, slot, d + 1u), rotated(row, slot, d + 2u), rotated(row, slot, d + 3u),
    ));
    values[i] = to_stored(vec4<f32>(plain(row, d), plain(row, d + 1u), plain(row, d + 2u), plain(row, d + 3u)));
}
