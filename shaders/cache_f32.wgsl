// KV cache elements in float32, four a step: (KV heads, S, D/4), D padded to 4.
alias Stored = vec4<f32>;

fn from_stored(v: Stored) -> vec4<f32> {
    return v;
}

fn to_stored(v: vec4<f32>) -> Stored {
    return v;
}
