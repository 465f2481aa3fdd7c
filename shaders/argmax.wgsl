// The likeliest token: the largest logit and, among equals, the lowest id. One workgroup walks the vocabulary.
struct Params {
    vocab: u32,
    row: u32, // of the logits, and the place of its token
    pad0: u32,
    pad1: u32,
}

@group(2) @binding(0) var<uniform> params: Params;
@group(2) @binding(1) var<storage, read> logits: array<f32>; // (T, vocabulary)
@group(2) @binding(2) var<storage, read_write> token: array<u32>; // (T)

var<workgroup> best_logit: array<f32, WORKGROUP>;
var<workgroup> best_id: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(lane: Lane) {
    var logit = -3.4e38;
    // Only a lane that finds nothing keeps this id; it loses against every other.
    var id = 0xffffffffu;
    for (var i = lane.index; i < params.vocab; i += WORKGROUP) {
        let v = logits[params.row * params.vocab + i];
        if v > logit {
            logit = v;
            id = i;
        }
    }
    best_logit[lane.index] = logit;
    best_id[lane.index] = id;
    workgroupBarrier();
    for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
        if lane.index < half {
            let other = best_logit[lane.index + half];
            let other_id = best_id[lane.index + half];
            let own = best_logit[lane.index];
            if other > own || (other == own && other_id < best_id[lane.index]) {
                best_logit[lane.index] = other;
                best_id[lane.index] = other_id;
            }
        }
        workgroupBarrier();
    }
    if lane.index == 0u {
        token[params.row] = min(best_id[0], params.vocab - 1u);
    }
}
