//! Cases of what reads and writes a cache, and of the choice of a token.

use super::super::twin;
use super::super::values::{Form, Noise, cache_bytes, f32_bytes};
use super::{Case, Expected, FLOAT, HALF, case};
use crate::kernels::attention::{self, Attention, Combine, CombineParams};
use crate::kernels::{BLOCK, argmax, rope};

/// (T, D/2) cosines and sines.
pub(super) fn angles(tokens: usize, dim: usize, noise: &mut Noise) -> Vec<f32> {
    let turn = |angle: &f32| {
        let (sine, cosine) = f64::from(*angle).sin_cos();
        [cosine as f32, sine as f32]
    };
    noise.values(tokens * dim / 2, 3.0).iter().flat_map(turn).collect()
}

pub(super) fn rotation(k: rope::Rope, noise: &mut Noise) -> Case {
    let (tokens, heads, dim, capacity) = (3, 2, 10usize, 9);
    let (chunks, stride) = (dim.div_ceil(4), 32);
    let params = rope::Params {
        tokens: tokens as u32,
        position: 5,
        capacity: capacity as u32,
        kv_heads: heads as u32,
        dim: dim as u32,
        chunks: chunks as u32,
        stride: stride as u32,
        row: 1,
    };
    let rows = tokens + 1;
    let (key, value) = (noise.values(rows * stride, 1.0), noise.values(rows * stride, 1.0));
    let angles = angles(rows, dim, noise);
    let before = noise.values(heads * capacity * chunks * 4, 1.0);
    let (form, tolerance) = if k.half { (Form::F16, HALF) } else { (Form::F32, FLOAT) };
    let result = |binding, input: &[f32], angles| Expected {
        at: (2, binding),
        form,
        values: twin::append(&params, &input[stride..], angles, &before),
        tolerance,
    };
    let expected = vec![result(4, &key, Some(&angles[dim..])), result(5, &value, None)];
    let cache = cache_bytes(k.half, &before);
    let work = vec![Vec::new(), f32_bytes(&key), f32_bytes(&value), f32_bytes(&angles), cache.clone(), cache];
    case([Vec::new(), Vec::new(), work], &params, k.grid(tokens, heads, chunks), expected)
}

/// Attention parameters for a cache that is full with the last token.
pub(super) fn params(
    tokens: usize,
    capacity: usize,
    group: usize,
    kv_heads: usize,
    dim: usize,
    splits: usize,
) -> attention::Params {
    let heads = group * kv_heads;
    let stride = (heads * dim).next_multiple_of(BLOCK);
    let partly = splits > 1;
    let size = dim + 2;
    let (out_token, out_head, out_split) =
        if partly { (heads * splits * size, splits * size, size) } else { (stride, dim, 0) };
    attention::Params {
        tokens: tokens as u32,
        position: (capacity - tokens) as u32,
        capacity: capacity as u32,
        group: group as u32,
        dim: dim as u32,
        chunks: dim.div_ceil(4) as u32,
        stride: stride as u32,
        span: capacity.div_ceil(splits).next_multiple_of(64) as u32,
        out_token: out_token as u32,
        out_head: out_head as u32,
        out_split: out_split as u32,
        partly: u32::from(partly),
        scale: (1.0 / (dim as f64).sqrt()) as f32,
        ..Default::default()
    }
}

pub(super) fn attending(k: Attention, dim: usize, splits: usize, noise: &mut Noise) -> Case {
    let (tokens, group, kv_heads, capacity) = (3, 3, 2, 75);
    // The first row is another pass's; spans are one pass's alone.
    let (rows, mut params) = (tokens + 1, params(tokens, capacity, group, kv_heads, dim, splits));
    params.row = 1;
    params.out_first = if splits > 1 { 0 } else { params.out_token };
    let query = noise.values(rows * params.stride as usize, 1.0);
    let angles = angles(rows, dim, noise);
    let elements = kv_heads * capacity * params.chunks as usize * 4;
    let mut keys = noise.values(elements, 1.0);
    let mut values = noise.values(elements, 1.0);
    for cache in [&mut keys, &mut values] {
        cache.chunks_mut(params.chunks as usize * 4).for_each(|line| line[dim..].fill(0.0));
    }
    let before = noise.values(rows * params.out_token as usize, 1.0);
    let (own_query, own_angles) = (&query[params.stride as usize..], &angles[dim..]);
    let after = twin::attend(&params, own_query, own_angles, &keys, &values, kv_heads, &before);
    let work = vec![
        Vec::new(),
        f32_bytes(&query),
        f32_bytes(&angles),
        cache_bytes(k.half, &keys),
        cache_bytes(k.half, &values),
        f32_bytes(&before),
    ];
    let expected = Expected { at: (2, 5), form: Form::F32, values: after, tolerance: FLOAT };
    let grid = Attention::grid(tokens, group, kv_heads, splits);
    case([Vec::new(), Vec::new(), work], &params, grid, vec![expected])
}

pub(super) fn combining(k: Combine, noise: &mut Noise) -> Case {
    let (tokens, heads, dim, splits, stride) = (2, 3, 10, 3, 32);
    let params = CombineParams {
        tokens: tokens as u32,
        heads: heads as u32,
        dim: dim as u32,
        splits: splits as u32,
        stride: stride as u32,
        row: 1,
        pad: [0; 2],
    };
    let mut spans = noise.values(tokens * heads * splits * (dim + 2), 2.0);
    spans.chunks_mut(dim + 2).for_each(|span| span[dim + 1] = 1.0 + span[dim + 1].abs());
    let before = noise.values((tokens + 1) * stride, 1.0);
    let values = twin::combine(&params, &spans, &before);
    let work = vec![Vec::new(), f32_bytes(&spans), f32_bytes(&before)];
    let expected = Expected { at: (2, 2), form: Form::F32, values, tolerance: FLOAT };
    case([Vec::new(), Vec::new(), work], &params, k.grid(tokens, heads * dim), vec![expected])
}

pub(super) fn likeliest(noise: &mut Noise) -> Case {
    let vocab = 1003;
    let mut logits = noise.values(2 * vocab, 1.0);
    // Equals, in different lanes and in the same one: the lowest id wins.
    for at in [333, 334, 397, 589, 1002] {
        logits[vocab + at] = 2.0;
    }
    let params = argmax::Params { vocab: vocab as u32, row: 1, pad: [0; 2] };
    // A buffer has at least four words.
    let work = vec![Vec::new(), f32_bytes(&logits), vec![0; 16]];
    let expected =
        Expected { at: (2, 2), form: Form::U32, values: vec![0.0, 333.0, 0.0, 0.0], tolerance: 0.0 };
    case([Vec::new(), Vec::new(), work], &params, [1, 1, 1], vec![expected])
}
