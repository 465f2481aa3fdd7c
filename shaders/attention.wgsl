// Causal attention with an online softmax. A workgroup owns four queries that read the same key head (grouped heads of
// one token, then of the next) and a span of positions; spans meet in attention_combine. Positions go across lanes for
// the scores, elements of the head for the weighted sum.
struct Params {
    tokens: u32,    // T
    position: u32,  // of the first token
    capacity: u32,  // S of the cache
    group: u32,     // query heads per key head
    dim: u32,       // D, even, at most 256
    chunks: u32,    // D / 4, rounded up
    stride: u32,    // elements per row of the query slot
    span: u32,      // positions per split, a multiple of TILE
    out_token: u32, // strides of the output, in elements
    out_head: u32,
    out_split: u32,
    partly: u32,    // 1: write unnormalised sums, the largest score and the total, for attention_combine
    scale: f32,     // 1 / sqrt(D)
    row: u32,       // of the query slot and the angles, where the first token stands
    out_first: u32, // where the output of the first token starts, in elements
    pad0: u32,
}

const TILE: u32 = 64u;
const MAX_CHUNKS: u32 = 64u;
const LOWEST: f32 = -3.0e38;

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> query: array<f32>; // (T, H * D)
@group(2) @binding(2) var<storage, read> angles: array<vec2<f32>>; // (T, D/2): cosine, sine
@group(2) @binding(3) var<storage, read> keys: array<Stored>; // (KV heads, S, D/4)
@group(2) @binding(4) var<storage, read> values: array<Stored>; // (KV heads, S, D/4)
@group(2) @binding(5) var<storage, read_write> out: array<f32>; // (T, H * D), or (T, H, splits, D + 2)

var<workgroup> queries: array<vec4<f32>, 256>; // (4, D/4), rotated
var<workgroup> sums: array<vec4<f32>, 256>; // (4, D/4)
var<workgroup> scores: array<vec4<f32>, TILE>; // a component a query

fn rotated(row: u32, token: u32, d: u32) -> f32 {
    let half = params.dim / 2u;
    if d >= params.dim {
        return 0.0;
    }
    let angle = angles[token * half + d % half];
    if d < half {
        return query[row + d] * angle.x - query[row + d + half] * angle.y;
    }
    return query[row + d] * angle.x + query[row + d - half] * angle.y;
}

// Which of the four queries are real, and the last position each may see.
fn token_of(index: u32) -> u32 {
    return min(index, params.tokens * params.group - 1u) / params.group;
}

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    let first = lane.group.x * 4u;
    let kv_head = lane.group.y;
    let split = lane.group.z;
    let chunks = params.chunks;
    for (var i = lane.index; i < 4u * chunks; i += WORKGROUP) {
        let index = min(first + i / chunks, params.tokens * params.group - 1u);
        let token = params.row + token_of(index);
        let row = token * params.stride + (kv_head * params.group + index % params.group) * params.dim;
        let d = (i % chunks) * 4u;
        queries[i] = vec4<f32>(
            rotated(row, token, d), rotated(row, token, d + 1u),
            rotated(row, token, d + 2u), rotated(row, token, d + 3u),
        );
        sums[i] = vec4<f32>(0.0);
    }
    workgroupBarrier();
    let last = params.position
        + vec4<u32>(token_of(first), token_of(first + 1u), token_of(first + 2u), token_of(first + 3u));
    let begin = split * params.span;
    let end = min(begin + params.span, last.w + 1u);
    let base = kv_head * params.capacity;
    var largest = vec4<f32>(LOWEST);
    var total = vec4<f32>(0.0);
    for (var tile = begin; tile < end; tile += TILE) {
        let count = min(TILE, end - tile);
        var tile_largest = vec4<f32>(LOWEST);
        for (var p = lane.index; p < count; p += WORKGROUP) {
            let k = (base + tile + p) * chunks;
            var dots = vec4<f32>(0.0);
            for (var c = 0u; c < chunks; c++) {
                let key = from_stored(keys[k + c]);
                dots += vec4<f32>(
                    dot(key, queries[c]),
                    dot(key, queries[chunks + c]),
                    dot(key, queries[2u * chunks + c]),
                    dot(key, queries[3u * chunks + c]),
                );
            }
            let score = select(vec4<f32>(LOWEST), dots * params.scale, vec4<u32>(tile + p) <= last);
            scores[p] = score;
            tile_largest = max(tile_largest, score);
        }
        let new_largest = max(largest, workgroup_max(tile_largest, lane));
        let keep = exp(largest - new_largest);
        largest = new_largest;
        var tile_total = vec4<f32>(0.0);
        for (var p = lane.index; p < count; p += WORKGROUP) {
            let visible = vec4<u32>(tile + p) <= last;
            let weight = select(vec4<f32>(0.0), exp(scores[p] - largest), visible);
            scores[p] = weight;
            tile_total += weight;
        }
        total = total * keep + workgroup_sum(tile_total, lane);
        workgroupBarrier();
        for (var c = lane.index; c < chunks; c += WORKGROUP) {
            var s0 = sums[c] * keep.x;
            var s1 = sums[chunks + c] * keep.y;
            var s2 = sums[2u * chunks + c] * keep.z;
            var s3 = sums[3u * chunks + c] * keep.w;
            for (var p = 0u; p < count; p++) {
                let value = from_stored(values[(base + tile + p) * chunks + c]);
                let weight = scores[p];
                s0 += weight.x * value;
                s1 += weight.y * value;
                s2 += weight.z * value;
                s3 += weight.w * value;
            }
            sums[c] = s0;
            sums[chunks + c] = s1;
            sums[2u * chunks + c] = s2;
            sums[3u * chunks + c] = s3;
        }
        workgroupBarrier();
    }
    for (var i = lane.index; i < 4u * chunks; i += WORKGROUP) {
        let j = i / chunks;
        let index = first + j;
        if index < params.tokens * params.group {
            let head = kv_head * params.group + index % params.group;
            let at = params.out_first + (index / params.group) * params.out_token + head * params.out_head + split * params.out_split;
            let factor = select(1.0 / total[j], 1.0, params.partly != 0u);
            let sum = sums[i] * factor;
            let d = (i % chunks) * 4u;
            for (var e = 0u; e < 4u; e++) {
                if d + e < params.dim {
                    out[at + d + e] = sum[e];
                }
            }
            if params.partly != 0u && d == 0u {
                out[at + params.dim] = largest[j];
                out[at + params.dim + 1u] = total[j];
            }
        }
    }
}
