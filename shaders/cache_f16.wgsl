// KV cache elements in float16 pairs, four a step: (KV heads, S, D/4), D padded to 4.
alias Stored = vec2<u32>;

fn from_stored(v: Stored) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(v.x), unpack2x16float(v.y));
}

fn to_stored(v: vec4<f32>) -> Stored {
    return vec2<u32>(pack2x16float(v.xy), pack2x16float(v.zw));
}
