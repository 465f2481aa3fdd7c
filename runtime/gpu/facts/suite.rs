//! What each kernel is tried with: small inputs at awkward sizes, with what must come out; and a phone's sizes for its time.
//!
//! Invariant: every buffer that a kernel writes is checked as a whole, so that a value beside its place is found too.

use super::twin;
use super::values::{Form, Noise, cache_bytes, f32_bytes, rounded, stored, tail_bytes, wide};
use crate::device::MOST_ADAPTERS;
use crate::error::Result;
use crate::kernels::attention::{Attention, Combine, CombineParams};
use crate::kernels::expand::{self, Expand};
use crate::kernels::prepare::{Order, Prepare};
use crate::kernels::project::{Load, Mode, Project, Tail, TailKind};
use crate::kernels::{BLOCK, CHUNK, Kernel, argmax, attention, embed, prepare, project, rope, shrink};

/// Float32 sums, exponentials and divisions, which phones compute to a few units in the last place: a defect is far above.
const FLOAT: f64 = 5e-5;
/// Half a step of int8, and a little.
const ROUNDED: f64 = 0.502 / 127.0;
/// Half a step of f16.
const HALF: f64 = 1.0 / 2048.0;

/// What a buffer must hold afterwards.
pub(super) struct Expected {
    /// Which binding.
    pub(super) at: (usize, usize),
    pub(super) form: Form,
    pub(super) values: Vec<f64>,
    /// The largest error, as a fraction of the largest value.
    pub(super) tolerance: f64,
}

/// One dispatch.
pub(super) struct Case {
    /// Content of every binding; nothing where the parameters are.
    pub(super) groups: [Vec<Vec<u8>>; 3],
    pub(super) params: Vec<u8>,
    pub(super) grid: [u32; 3],
    pub(super) expected: Vec<Expected>,
}

fn case<P: bytemuck::Pod>(
    groups: [Vec<Vec<u8>>; 3],
    params: &P,
    grid: [u32; 3],
    expected: Vec<Expected>,
) -> Case {
    Case { groups, params: bytemuck::bytes_of(params).to_vec(), grid, expected }
}

/// Every case of a kernel.
pub(super) fn cases(kernel: Kernel) -> Result<Vec<Case>> {
    let noise = &mut Noise(0x9e37_79b9);
    match kernel {
        Kernel::Project(k) => {
            let tiles = projection(k, (37, 4, 2, 35), Mode::Gate, true, noise)?;
            Ok(vec![tiles, projection(k, (12, 67, 1, 1), Mode::Add, false, noise)?])
        }
        Kernel::Shrink(k) => Ok(vec![shrinking(k, noise)]),
        Kernel::Expand(k) => Ok(vec![expanding(k, 2, noise), expanding(k, 0, noise)]),
        Kernel::Prepare(k) => Ok(Order::ALL.into_iter().map(|order| prepared(k, order, noise)).collect()),
        Kernel::Embed(k) => Ok(vec![embedding(k, noise)?]),
        Kernel::Rope(k) => Ok(vec![rotation(k, noise)]),
        Kernel::Attention(k) => Ok(vec![attending(k, 12, 1, noise), attending(k, 128, 2, noise)]),
        Kernel::Combine(k) => Ok(vec![combining(k, noise)]),
        Kernel::Argmax(_) => Ok(vec![likeliest(noise)]),
    }
}

type Dims = (usize, usize, usize, usize);

fn projection(
    k: Project,
    (rows, blocks, group, tokens): Dims,
    mode: Mode,
    biased: bool,
    noise: &mut Noise,
) -> Result<Case> {
    let matrix = stored(k.matrix, rows, blocks, group, noise)?;
    let x = noise.values((tokens + 1) * blocks * BLOCK, 1.0);
    let (x_bytes, x) = match k.int8 {
        true => rounded(&x, Order::of(k.matrix.weights)),
        false => (f32_bytes(&x), wide(&x)),
    };
    let bias = noise.values(rows, 1.0);
    let stride = rows + 5;
    let y = noise.values((tokens + 1) * stride, 1.0);
    let mut params = project::Params {
        rows: rows as u32,
        blocks: blocks as u32,
        groups: blocks.div_ceil(group) as u32,
        group_blocks: group as u32,
        x_row: 1,
        tokens: tokens as u32,
        y_row: 1,
        y_stride: stride as u32,
        y_column: 3,
        mode: mode as u32,
        has_bias: u32::from(biased),
        ..Default::default()
    };
    let (tail, added) = match k.tail {
        None => (Vec::new(), vec![0.0; rows * tokens]),
        Some(Tail::Fused(kind)) => {
            let tail = LowRank::new(kind, (rows, tokens, 2), noise);
            (params.tail_chunks, params.inner_stride, params.inner_offset) = (2, tail.stride, tail.offset);
            params.up_first = tail.first;
            let added = tail.products.chunks(2).map(|row| row.iter().sum()).collect();
            (tail.bytes, added)
        }
        Some(Tail::Expanded) => {
            // This part's rows begin at the second of all.
            let chunks = 3;
            let expanded = noise.values(tokens * (rows + 3) * chunks, 1.0);
            (params.tail_chunks, params.inner_stride, params.inner_offset) =
                (chunks as u32, rows as u32 + 3, 1);
            let sums: Vec<f64> = expanded.chunks(chunks).map(|row| wide(row).iter().sum()).collect();
            let own = sums.chunks(rows + 3).flat_map(|row| row[1..=rows].to_vec()).collect();
            (vec![f32_bytes(&expanded)], own)
        }
    };
    let values = twin::project(&params, &matrix.values, &x, &bias, &added, &y);
    let [weights, scales, zeros] = matrix.bytes;
    let groups =
        [vec![weights, scales, zeros, f32_bytes(&bias)], tail, vec![Vec::new(), x_bytes, f32_bytes(&y)]];
    let expected = Expected { at: (2, 2), form: Form::F32, values, tolerance: FLOAT };
    Ok(case(groups, &params, k.grid(rows, tokens), vec![expected]))
}

/// The up half of a tail and the inner values before it, as group 1 holds them; what they give, (T, R, chunks).
struct LowRank {
    bytes: Vec<Vec<u8>>,
    products: Vec<f64>,
    /// The first chunk of this linear among the up half's.
    first: u32,
    /// Chunks of a token's inner values, and the first of this linear.
    stride: u32,
    offset: u32,
}

impl LowRank {
    fn new(kind: TailKind, (rows, tokens, chunks): (usize, usize, usize), noise: &mut Noise) -> Self {
        let (stride, offset) = (4, 1);
        // Another linear's come before.
        let first = 3;
        let up = noise.values((first + rows * chunks) * CHUNK, 0.25);
        let inner = noise.values(tokens * stride * CHUNK, 1.0);
        let products = twin::expand(&up[first * CHUNK..], &inner, (rows, tokens, chunks), (stride, offset));
        let bytes = vec![tail_bytes(kind, &up), f32_bytes(&inner)];
        Self { bytes, products, first: first as u32, stride: stride as u32, offset: offset as u32 }
    }
}

/// An adapter of so many chunks beside one of three.
fn expanding(k: Expand, chunks: usize, noise: &mut Noise) -> Case {
    let (rows, tokens, most) = (37, 3, 3);
    let stride = rows + 5;
    let tail = LowRank::new(k.tail, (rows, tokens, chunks), noise);
    let params = expand::Params {
        rows: rows as u32,
        tokens: tokens as u32,
        tail_chunks: chunks as u32,
        inner_stride: tail.stride,
        inner_offset: tail.offset,
        y_row: 1,
        y_stride: stride as u32,
        y_column: 3,
        y_chunks: most as u32,
        up_first: tail.first,
        ..Default::default()
    };
    let before = noise.values((tokens + 2) * stride * most, 1.0);
    let mut values = wide(&before);
    for line in 0..tokens * rows {
        let to = ((line / rows + 1) * stride + 3 + line % rows) * most;
        values[to..to + most].fill(0.0);
        values[to..to + chunks].copy_from_slice(&tail.products[line * chunks..][..chunks]);
    }
    let expected = Expected { at: (2, 1), form: Form::F32, values, tolerance: FLOAT };
    let groups = [Vec::new(), tail.bytes, vec![Vec::new(), f32_bytes(&before)]];
    case(groups, &params, k.grid(rows, tokens, most), vec![expected])
}

fn shrinking(k: shrink::Shrink, noise: &mut Noise) -> Case {
    let (rows, blocks, tokens) = (16, 67, 2);
    let width = blocks * BLOCK;
    // Another step's come before.
    let (down_first, factor_first) = (5, 8);
    let down = noise.values(down_first * BLOCK + rows * width, 1.0 / 8.0);
    // Two adapters, of which the second is scaled and has a GELU, and a third that is scaled to nothing.
    let kind = |i: usize| shrink::kind(i / 6, i / 6 == 1);
    let mut factors = vec![9.0; 2 * factor_first];
    factors.extend((0..rows).flat_map(|i| [0.5 + i as f32 / 8.0, kind(i)]));
    let mut scales = [1.0; MOST_ADAPTERS];
    (scales[1], scales[2]) = (0.25, 0.0);
    let x = noise.values((tokens + 1) * width, 0.5);
    // The first row is another group's.
    let before = noise.values((tokens + 1) * rows, 1.0);
    let mut values = wide(&before[..rows]);
    values.extend(twin::shrink(
        &down[down_first * BLOCK..],
        (&factors[2 * factor_first..], &scales),
        &x[width..],
        width,
    ));
    let inner = f32_bytes(&before);
    let groups = [
        Vec::new(),
        vec![tail_bytes(k.tail, &down), f32_bytes(&factors), inner],
        vec![Vec::new(), f32_bytes(&x)],
    ];
    let params = shrink::Params {
        rows: rows as u32,
        blocks: blocks as u32,
        x_row: 1,
        inner_row: 1,
        down_first: down_first as u32,
        factor_first: factor_first as u32,
        pad: [0; 2],
        scales,
    };
    let expected = Expected { at: (1, 2), form: Form::F32, values, tolerance: FLOAT };
    case(groups, &params, shrink::Shrink::grid(rows, tokens), vec![expected])
}

fn prepared(k: Prepare, order: Order, noise: &mut Noise) -> Case {
    // Each order meets another length, with and without a norm.
    let (blocks, normalise) = [(67, 1), (3, 0), (5, 1)][order as usize];
    let (tokens, width, cols) = (3, blocks * BLOCK, blocks * BLOCK - 26);
    let mut norm: Vec<f32> = noise.values(width, 0.25).iter().map(|v| 1.0 + v).collect();
    norm[cols..].fill(0.0);
    let mut x = noise.values((tokens + 1) * width, 1.0);
    x.chunks_mut(width).for_each(|row| row[cols..].fill(0.0));
    let params = prepare::Params {
        blocks: blocks as u32,
        cols: cols as u32,
        first_row: 1,
        normalise,
        keep: 1,
        order: order as u32,
        epsilon: 1e-5,
        pad: 0,
    };
    let values = twin::prepare(&params, &norm, &x[width..]);
    let unwritten = vec![0xff; tokens * width * 4];
    let mut work = vec![Vec::new(), f32_bytes(&x), unwritten];
    let mut expected =
        vec![Expected { at: (2, 2), form: Form::F32, values: values.clone(), tolerance: FLOAT }];
    if k.int8 {
        work.push(vec![0xff; tokens * blocks * (BLOCK + 16)]);
        expected.push(Expected { at: (2, 3), form: Form::Rounded(order), values, tolerance: ROUNDED });
    }
    case([vec![f32_bytes(&norm)], Vec::new(), work], &params, [tokens as u32, 1, 1], expected)
}

fn embedding(k: embed::Embed, noise: &mut Noise) -> Result<Case> {
    let (rows, blocks, group, first, cols) = (9, 4, 2, 100, 4 * BLOCK - 28);
    let table = stored(k.matrix, rows, blocks, group, noise)?;
    // One token is of another part of the table.
    let tokens = [103u32, 100, 5, 108, 109];
    let before = noise.values(tokens.len() * blocks * BLOCK, 1.0);
    let mut values = wide(&before);
    for (token, row) in tokens.iter().zip(values.chunks_mut(blocks * BLOCK)) {
        let Some(from) = token.checked_sub(first).filter(|row| (*row as usize) < rows) else { continue };
        let from = &table.values[from as usize * blocks * BLOCK..];
        row.fill(0.0);
        row[..cols].iter_mut().zip(from).for_each(|(to, from)| *to = f64::from(*from));
    }
    let params = embed::Params {
        first_row: first,
        rows: rows as u32,
        blocks: blocks as u32,
        cols: cols as u32,
        groups: blocks.div_ceil(group) as u32,
        group_blocks: group as u32,
        tokens: tokens.len() as u32,
        pad: 0,
    };
    let [weights, scales, zeros] = table.bytes;
    let ids = bytemuck::cast_slice(&tokens).to_vec();
    let groups =
        [vec![weights, scales, zeros, vec![0; 16]], Vec::new(), vec![Vec::new(), ids, f32_bytes(&before)]];
    let expected = Expected { at: (2, 2), form: Form::F32, values, tolerance: FLOAT };
    Ok(case(groups, &params, k.grid(tokens.len(), blocks), vec![expected]))
}

/// (T, D/2) cosines and sines.
fn angles(tokens: usize, dim: usize, noise: &mut Noise) -> Vec<f32> {
    let turn = |angle: &f32| {
        let (sine, cosine) = f64::from(*angle).sin_cos();
        [cosine as f32, sine as f32]
    };
    noise.values(tokens * dim / 2, 3.0).iter().flat_map(turn).collect()
}

fn rotation(k: rope::Rope, noise: &mut Noise) -> Case {
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
fn attention_params(
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

fn attending(k: Attention, dim: usize, splits: usize, noise: &mut Noise) -> Case {
    let (tokens, group, kv_heads, capacity) = (3, 3, 2, 75);
    // The first row is another pass's; spans are one pass's alone.
    let (rows, mut params) = (tokens + 1, attention_params(tokens, capacity, group, kv_heads, dim, splits));
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

fn combining(k: Combine, noise: &mut Noise) -> Case {
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

fn likeliest(noise: &mut Noise) -> Case {
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

/// Bytes over and over up to a length.
fn cycled(bytes: &[u8], len: usize) -> Vec<u8> {
    bytes.iter().copied().cycle().take(len).collect()
}

/// The work that a kernel's time is taken with, in a phone's sizes; none for kernels whose time does not matter.
pub(super) fn timing(kernel: Kernel) -> Result<Option<Case>> {
    let noise = &mut Noise(0x85eb_ca6b);
    match kernel {
        Kernel::Project(k) if k.tail.is_none() => {
            let (rows, blocks, tokens) = match k.shape.load() {
                Load::One => (2048, 64, 1),
                Load::Several => (2048, 64, 4),
                Load::Many => (1024, 32, 64),
            };
            // A few rows over and over.
            let few = 32;
            let mut case = projection(k, (few, blocks, 1, tokens), Mode::Store, false, noise)?;
            for bytes in &mut case.groups[0] {
                *bytes = cycled(bytes, bytes.len() * rows / few);
            }
            let params = project::Params {
                rows: rows as u32,
                blocks: blocks as u32,
                groups: blocks as u32,
                group_blocks: 1,
                tokens: tokens as u32,
                y_stride: rows as u32,
                ..Default::default()
            };
            case.params = bytemuck::bytes_of(&params).to_vec();
            case.groups[2][2] = vec![0; rows * tokens * 4];
            Ok(Some(Case { grid: k.grid(rows, tokens), expected: Vec::new(), ..case }))
        }
        Kernel::Attention(k) => {
            let (group, kv_heads, dim, capacity, splits) = (4, 8, 64, 1024, 8);
            let params = attention_params(1, capacity, group, kv_heads, dim, splits);
            let cache = cache_bytes(k.half, &noise.values(kv_heads * capacity * dim, 1.0));
            let work = vec![
                Vec::new(),
                f32_bytes(&noise.values(params.stride as usize, 1.0)),
                f32_bytes(&angles(1, dim, noise)),
                cache.clone(),
                cache,
                vec![0; params.out_token as usize * 4],
            ];
            let grid = Attention::grid(1, group, kv_heads, splits);
            Ok(Some(case([Vec::new(), Vec::new(), work], &params, grid, Vec::new())))
        }
        _ => Ok(None),
    }
}
