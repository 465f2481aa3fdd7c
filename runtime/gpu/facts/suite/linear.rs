//! Cases of the linears: projections, what adapters add to them, and what makes their inputs.

use super::super::twin;
use super::super::values::{Form, Noise, f32_bytes, rounded, stored, tail_bytes, wide};
use super::{Case, Expected, FLOAT, ROUNDED, case};
use crate::device::MOST_ADAPTERS;
use crate::error::Result;
use crate::kernels::expand::{self, Expand};
use crate::kernels::prepare::{Order, Prepare};
use crate::kernels::project::{Mode, Project, Tail, TailKind};
use crate::kernels::{BLOCK, CHUNK, embed, prepare, project, shrink};

type Dims = (usize, usize, usize, usize);

pub(super) fn projection(
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
pub(super) fn expanding(k: Expand, chunks: usize, noise: &mut Noise) -> Case {
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

pub(super) fn shrinking(k: shrink::Shrink, noise: &mut Noise) -> Case {
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

pub(super) fn prepared(k: Prepare, order: Order, noise: &mut Noise) -> Case {
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

pub(super) fn embedding(k: embed::Embed, noise: &mut Noise) -> Result<Case> {
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
