//! What each kernel is tried with: small inputs at awkward sizes, with what must come out; and a phone's sizes for its time.
//!
//! Invariant: every buffer that a kernel writes is checked as a whole, so that a value beside its place is found too.

mod attention;
mod linear;

use super::values::{Form, Noise, cache_bytes, f32_bytes};
use crate::error::Result;
use crate::kernels::attention::Attention;
use crate::kernels::prepare::Order;
use crate::kernels::project::{Load, Mode};
use crate::kernels::{Kernel, project};
use attention::{angles, attending, combining, likeliest, params, rotation};
use linear::{embedding, expanding, prepared, projection, shrinking};

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
            let params = params(1, capacity, group, kv_heads, dim, splits);
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
