//! Working memory of a forward pass: slots, prepared inputs, parameters, and the bind groups over them.

use std::collections::HashMap;

use super::context::{Context, buffer_bytes};
use super::pipeline::{PARAMS_STRIDE, Pipelines};
use crate::arch::{ModelShape, Recipe, Slot, Step};
use crate::error::Result;
use crate::kernels::attention::Spans;
use crate::kernels::prepare::Order;
use crate::kernels::project::MatrixKind;
use crate::kernels::{BLOCK, Binding, CHUNK, Family};

/// Ranks of a linear, of all its branches, that plans of batches count with.
const PLANNED_RANK: usize = 64;

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
    Expanded,
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
        layouts: &[(MatrixKind, usize)],
        max_tokens: usize,
        family: Family,
        int8: bool,
    ) -> Result<Self> {
        let mut buffers = HashMap::new();
        for (place, bytes) in places(recipe, layouts, max_tokens, family, int8) {
            let what = format!("working memory for {place:?}");
            let usage = match place {
                Place::Params => wgpu::BufferUsages::UNIFORM,
                _ => wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            };
            buffers.insert(place, context.buffer(&what, bytes, usage)?);
        }
        let mut this = Self { buffers, groups: HashMap::new(), readback: None };
        this.readback(context, logit_bytes(recipe))?;
        Ok(this)
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

    /// Makes room for `elements` float32 of logits or expanded tails; what was there is lost.
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

    /// Lets go of what batches, and more than one row of logits, needed.
    pub(super) fn trim(&mut self, context: &Context, vocab: usize) -> Result<()> {
        if self.buffers.remove(&Place::Expanded).is_some() {
            self.groups.retain(|(_, places), _| !places.contains(&Place::Expanded));
        }
        let (place, bytes) = (Place::Slot(Slot::Logits), buffer_bytes(vocab as u64 * 4));
        if self.buffers.get(&place).is_some_and(|b| b.size() > bytes) {
            self.buffers.remove(&place);
            self.readback = None;
            self.grow(context, place, vocab)?;
            self.readback(context, bytes)?;
        }
        Ok(())
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

/// Bytes of one row of logits.
fn logit_bytes(recipe: &Recipe) -> u64 {
    recipe.shape.vocab as u64 * 4
}

/// Every buffer of working memory and its bytes; `layouts` has each matrix's kind and in how many parts it lies.
fn places(
    recipe: &Recipe,
    layouts: &[(MatrixKind, usize)],
    max_tokens: usize,
    family: Family,
    int8: bool,
) -> Vec<(Place, u64)> {
    let shape = &recipe.shape;
    let widest = recipe.matrices.iter().map(|m| m.cols.div_ceil(BLOCK)).max().unwrap_or(1);
    let tokens = |row: usize| (max_tokens as u64).saturating_mul(row as u64);
    let slots = [Slot::Residual, Slot::Query, Slot::Key, Slot::Value, Slot::Attended, Slot::Gated];
    let mut places: Vec<(Place, u64)> =
        slots.iter().map(|slot| (Place::Slot(*slot), tokens(stride(shape, *slot) * 4))).collect();
    places.push((Place::Slot(Slot::Logits), logit_bytes(recipe)));
    places.push((Place::Prepared, tokens(widest * BLOCK * 4)));
    let read =
        |order: &Order| int8 && layouts.iter().any(|(k, _)| k.is_packed() && Order::of(k.weights) == *order);
    places.extend(Order::ALL.into_iter().filter(read).map(|o| (Place::Rounded(o), tokens(widest * 48))));
    places.push((Place::Tokens, tokens(4)));
    places.push((Place::Angles, tokens(shape.head_dim / 2 * 8)));
    places.push((Place::Spans, (4 * Spans::busy(family) * (shape.head_dim + 2) * 4) as u64));
    places.push((Place::Token, tokens(4)));
    places.push((Place::Params, most_dispatches(recipe, layouts) as u64 * PARAMS_STRIDE));
    places
}

/// What [`Scratch::new`] allocates.
pub(super) fn scratch_bytes(
    recipe: &Recipe,
    layouts: &[(MatrixKind, usize)],
    max_tokens: usize,
    family: Family,
    int8: bool,
) -> u64 {
    let sizes = places(recipe, layouts, max_tokens, family, int8);
    let sizes = sizes.iter().map(|(_, bytes)| *bytes).chain([logit_bytes(recipe)]);
    sizes.fold(0, |sum, bytes| sum.saturating_add(buffer_bytes(bytes)))
}

/// What [`Scratch::grow`] adds for each row of a batch of sessions, with tails of up to [`PLANNED_RANK`]: what they add to the
/// widest linear before the logits, its logits and their readback.
pub(super) fn batch_row_bytes(recipe: &Recipe) -> u64 {
    let rows = recipe.steps.iter().flat_map(|step| match step {
        Step::Project { linears, output, .. } if !output.is_logits() => linears.as_slice(),
        _ => &[],
    });
    let widest = rows.map(|id| recipe.linear_shape(*id).0).max().unwrap_or(0);
    (widest * (PLANNED_RANK / CHUNK) * 4) as u64 + 2 * logit_bytes(recipe)
}

/// The most dispatches of one submit: a pass alone is one; a batch of different adapters may be several.
fn most_dispatches(recipe: &Recipe, layouts: &[(MatrixKind, usize)]) -> usize {
    let of = |step: &Step| match step {
        Step::Embed { table } => layouts[table.0].1,
        // Two orders of rounding, one shrink, the linears.
        Step::Project { linears, .. } => {
            3 + linears.iter().map(|id| layouts[recipe.linears[id.0].matrix.0].1).sum::<usize>()
        }
        Step::Attend { .. } => 3,
    };
    1 + recipe.steps.iter().map(of).sum::<usize>()
}
