// The down half of the low-rank tail in float16 pairs: LoRA's A rows and recovery's D rows of all linears, step by step.
@group(1) @binding(0) var<storage, read> down: array<vec4<u32>>; // (blocks, 4)

fn halves(lo: u32, hi: u32) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(lo), unpack2x16float(hi));
}

fn down_block(block: u32) -> Block {
    let i = block * 4u;
    let p = down[i];
    let q = down[i + 1u];
    let r = down[i + 2u];
    let s = down[i + 3u];
    return Block(
        halves(p.x, p.y), halves(p.z, p.w), halves(q.x, q.y), halves(q.z, q.w),
        halves(r.x, r.y), halves(r.z, r.w), halves(s.x, s.y), halves(s.z, s.w),
    );
}
