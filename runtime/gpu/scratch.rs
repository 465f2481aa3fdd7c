//! Working memory of a forward pass: slots, prepared inputs, parameters, and the bind groups over them.

use std::collections::HashMap;

use super::context::Context;
use super::matrix::GpuMatrix;
use super::pipeline::{PARAMS_STRIDE, Pipelines};
use crate::arch::{ModelShape, Recipe, Slot, Step};
use crate::error::Result;
use crate::kernels::attention::Spans;
use crate::kernels::prepare::Order;
use crate::kernels::{BLOCK, Binding, Family};

/// A buffer of working memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// Rows of activations.
    Slot(Slot),
    /// A step's input after its norm.
    Prepared,
    /// A step's input in int8.
    Rounded(Order),
    /// Token ids.
    Tokens,
    /// Cosines and sines of the pass's positions.
    Angles,
    /// Attention's spans before they are joined.
    Spans,
    /// What the adapters of a batch add to one linear.
    Summed,
    /// The likeliest token of each row of logits.
    Token,
    /// Parameters of every dispatch.
    Params,
}

/// Elements from one row of a slot to the next: whole blocks, so that every row can be a linear's input. Logits are
/// no input and are read back, so their rows are dense.
pub(super) fn stride(shape: &ModelShape, slot: Slot) -> usize {
    match slot {
        Slot::Logits => shape.vocab,
        _ => shape.width(slot).next_multiple_of(BLOCK),
    }
}

/// The largest row of any slot or prepared input, in elements.
pub(super) fn widest_row(recipe: &Recipe) -> usize {
    let slots = [Slot::Residual, Slot::Query, Slot::Key, Slot::Value, Slot::Attended, Slot::Gated];
    let slots = slots.iter().map(|slot| stride(&recipe.shape, *slot));
    let inputs = recipe.matrices.iter().map(|m| m.cols.next_multiple_of(BLOCK));
    slots.chain(inputs).max().unwrap_or(BLOCK)
}

/// Groups of working memory by layout and buffers.
type Cached = HashMap<(&'static [Binding], Vec<Place>), wgpu::BindGroup>;

/// All working memory of a device.
pub(super) struct Scratch {
    buffers: HashMap<Place, wgpu::Buffer>,
    groups: Cached,
    readback: Option<wgpu::Buffer>,
}

impl Scratch {
    /// Allocates for passes of up to `max_tokens`.
    pub(super) fn new(
        context: &Context,
        recipe: &Recipe,
        matrices: &[GpuMatrix],
        max_tokens: usize,
        family: Family,
        int8: bool,
    ) -> Result<Self> {
        let shape = &recipe.shape;
        let widest = recipe.matrices.iter().map(|m| m.cols.div_ceil(BLOCK)).max().unwrap_or(1);
        let mut buffers = HashMap::new();
        let mut place = |place: Place, what: &str, bytes: usize| -> Result<()> {
            buffers.insert(place, context.storage(what, bytes as u64)?);
            Ok(())
        };
        for slot in [Slot::Residual, Slot::Query, Slot::Key, Slot::Value, Slot::Attended, Slot::Gated] {
            place(Place::Slot(slot), &format!("{slot:?}"), max_tokens * stride(shape, slot) * 4)?;
        }
        place(Place::Slot(Slot::Logits), "logits", shape.vocab * 4)?;
        place(Place::Prepared, "prepared inputs", max_tokens * widest * BLOCK * 4)?;
        if int8 {
            let read = |order: &Order| {
                matrices.iter().any(|m| m.kind.is_packed() && Order::of(m.kind.weights) == *order)
            };
            for order in Order::ALL.into_iter().filter(read) {
                place(Place::Rounded(order), "rounded inputs", max_tokens * widest * 48)?;
            }
        }
        place(Place::Tokens, "token ids", max_tokens * 4)?;
        place(Place::Angles, "angles", max_tokens * (shape.head_dim / 2) * 8)?;
        place(Place::Spans, "attention spans", 4 * Spans::busy(family) * (shape.head_dim + 2) * 4)?;
        place(Place::Token, "the likeliest tokens", max_tokens * 4)?;
        let params = most_dispatches(recipe, matrices) as u64 * PARAMS_STRIDE;
        let params = context.buffer("parameters", params, wgpu::BufferUsages::UNIFORM)?;
        buffers.insert(Place::Params, params);
        Ok(Self { buffers, groups: HashMap::new(), readback: None })
    }

    /// A buffer.
    pub(super) fn buffer(&self, place: Place) -> Option<&wgpu::Buffer> {
        self.buffers.get(&place)
    }

    /// A group over these buffers, made once.
    pub(super) fn group(
        &mut self,
        context: &Context,
        pipelines: &mut Pipelines,
        bindings: &'static [Binding],
        places: &[Place],
    ) -> Result<wgpu::BindGroup> {
        let key = (bindings, places.to_vec());
        if let Some(group) = self.groups.get(&key) {
            return Ok(group.clone());
        }
        let buffers: Vec<&wgpu::Buffer> = places.iter().filter_map(|p| self.buffers.get(p)).collect();
        let group = pipelines.bind(context, bindings, &buffers)?;
        self.groups.insert(key, group.clone());
        Ok(group)
    }

    /// Makes room for `elements` float32 of logits or summed tails; what was there is lost.
    pub(super) fn grow(&mut self, context: &Context, place: Place, elements: usize) -> Result<()> {
        let bytes = (elements * 4) as u64;
        if self.buffers.get(&place).is_some_and(|b| b.size() >= bytes) {
            return Ok(());
        }
        let buffer = context.storage(&format!("{place:?}"), bytes)?;
        self.groups.retain(|(_, places), _| !places.contains(&place));
        self.buffers.insert(place, buffer);
        Ok(())
    }

    /// A mappable buffer of at least this size.
    pub(super) fn readback(&mut self, context: &Context, bytes: u64) -> Result<wgpu::Buffer> {
        if let Some(buffer) = self.readback.as_ref().filter(|b| b.size() >= bytes) {
            return Ok(buffer.clone());
        }
        let buffer = context.buffer("a readback", bytes, wgpu::BufferUsages::MAP_READ)?;
        self.readback = Some(buffer.clone());
        Ok(buffer)
    }

    /// Dispatches whose parameters have room.
    pub(super) fn most_dispatches(&self) -> usize {
        let bytes = self.buffers.get(&Place::Params).map_or(0, wgpu::Buffer::size);
        (bytes / PARAMS_STRIDE) as usize
    }

    /// Bytes held.
    pub(super) fn byte_len(&self) -> u64 {
        self.buffers.values().chain(&self.readback).map(wgpu::Buffer::size).sum()
    }
}

/// The most dispatches of one submit: a pass alone is one; a batch of different adapters may be several.
fn most_dispatches(recipe: &Recipe, matrices: &[GpuMatrix]) -> usize {
    let of = |step: &Step| match step {
        Step::Embed { table } => matrices[table.0].parts.len(),
        // Two orders of rounding, one shrink, the linears.
        Step::Project { linears, .. } => {
            3 + linears.iter().map(|id| matrices[recipe.linears[id.0].matrix.0].parts.len()).sum::<usize>()
        }
        Step::Attend { .. } => 3,
    };
    1 + recipe.steps.iter().map(of).sum::<usize>()
}
