//! Where everything of a tail lies on the GPU, by shapes alone: few buffers, however many linears there are, since each
//! costs as much to make as a kilobyte to write.

use super::{Branches, branches};
use crate::adapter::Tail;
use crate::arch::{LinearId, Recipe, Step};
use crate::gpu::context::buffer_bytes;
use crate::gpu::matrix::GpuMatrix;
use crate::kernels::{BLOCK, CHUNK};

/// Buffers of one kind, each as large as a binding may be.
pub(super) struct Slabs {
    most: u64,
    /// Bytes of each.
    pub(super) sizes: Vec<u64>,
}

/// A place in one of them.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    pub(super) slab: usize,
    /// Bytes before it.
    pub(super) start: u64,
}

impl Slabs {
    fn new(most: u64) -> Self {
        Self { most, sizes: Vec::new() }
    }

    /// Room for so many bytes, after all that came before.
    fn place(&mut self, bytes: u64) -> Spot {
        match self.sizes.last_mut() {
            Some(size) if size.saturating_add(bytes) <= self.most => *size += bytes,
            _ => self.sizes.push(bytes),
        }
        let slab = self.sizes.len() - 1;
        Spot { slab, start: self.sizes[slab] - bytes }
    }
}

/// One step.
pub(super) struct StepLayout {
    /// Padded ranks of all linears.
    pub(super) ranks: usize,
    pub(super) down: Spot,
    /// Ranks before it.
    pub(super) factor_first: usize,
    /// One for each linear of the step.
    pub(super) linears: Vec<Option<LinearLayout>>,
}

/// One linear.
pub(super) struct LinearLayout {
    pub(super) id: LinearId,
    /// r / 8.
    pub(super) chunks: usize,
    /// First chunk among the step's.
    pub(super) offset: usize,
    /// For each part of the matrix.
    pub(super) parts: Vec<Spot>,
}

/// A tail.
pub(super) struct Layout {
    pub(super) down: Slabs,
    pub(super) up: Slabs,
    /// Padded ranks of all steps.
    pub(super) ranks: usize,
    /// Those of the step that has most.
    pub(super) widest: usize,
    /// One for each step of the recipe.
    pub(super) steps: Vec<Option<StepLayout>>,
}

impl Layout {
    /// For values of `element` bytes and bindings of `most`.
    pub(super) fn new(
        recipe: &Recipe,
        matrices: &[GpuMatrix],
        tails: &[&Tail],
        element: usize,
        most: u64,
    ) -> Self {
        let mut this =
            Self { down: Slabs::new(most), up: Slabs::new(most), ranks: 0, widest: 0, steps: Vec::new() };
        for step in &recipe.steps {
            let linears = match step {
                Step::Project { linears, .. } => linears.as_slice(),
                _ => &[],
            };
            let (mut ranks, mut cols) = (0, 0);
            let mut list = Vec::new();
            for id in linears {
                let rank = padded_rank(&branches(tails, *id));
                cols = recipe.linear_shape(*id).1;
                let parts = &matrices[recipe.linears[id.0].matrix.0].parts;
                list.push((rank > 0).then(|| {
                    LinearLayout {
                        id: *id,
                        chunks: rank / CHUNK,
                        offset: ranks / CHUNK,
                        parts: parts
                            .iter()
                            .map(|part| this.up.place((part.rows.len() * rank * element) as u64))
                            .collect(),
                    }
                }));
                ranks += rank;
            }
            this.steps.push((ranks > 0).then(|| StepLayout {
                ranks,
                down: this.down.place((ranks * cols.next_multiple_of(BLOCK) * element) as u64),
                factor_first: this.ranks,
                linears: list,
            }));
            this.ranks += ranks;
            this.widest = this.widest.max(ranks);
        }
        this
    }

    /// Bytes of all buffers, inner values of so many tokens included.
    pub(super) fn bytes(&self, max_tokens: usize) -> u64 {
        let slabs = [&self.down, &self.up].into_iter().flat_map(|slabs| &slabs.sizes);
        let slabs: u64 = slabs.map(|bytes| buffer_bytes(*bytes)).sum();
        slabs + buffer_bytes(self.ranks as u64 * 8) + buffer_bytes((max_tokens * self.widest * 4) as u64)
    }
}

/// Ranks of one linear, padded to whole chunks.
fn padded_rank(list: &Branches<'_>) -> usize {
    list.iter().map(|(_, branch)| branch.rank()).sum::<usize>().next_multiple_of(CHUNK)
}
