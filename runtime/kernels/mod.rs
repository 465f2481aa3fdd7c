//! Kernels as plain data: which shader parts they join, what they bind, their parameters and dispatch sizes.
//!
//! Invariant: nothing here names a GPU library or knows a model; [`crate::gpu`] turns a [`Kernel`] into a pipeline. To
//! add a kernel: a shader, a file here, an arm of [`Kernel`], rows in `tests/kernels.rs`.

pub(crate) mod argmax;
pub(crate) mod attention;
pub(crate) mod caps;
pub(crate) mod embed;
pub(crate) mod expand;
mod parts;
pub(crate) mod prepare;
pub(crate) mod project;
pub(crate) mod rope;
pub(crate) mod shrink;
mod variants;

pub(crate) use caps::Width;
pub use caps::{Caps, Family};
pub(crate) use variants::Variant;

/// The text of every shader part, to be hashed.
pub(crate) use parts::ALL as SHADER_PARTS;

/// Four bind groups at most; group 0 is the base model, group 1 the adapter, group 2 parameters and activations.
pub(crate) type Groups = [Option<&'static [Binding]>; 3];

/// What stands at a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Binding {
    /// A slice of the pass's parameter buffer, chosen by a dynamic offset.
    Params,
    /// Storage that is only read.
    Read,
    /// Storage that is written.
    Write,
}

/// Group 0 of every kernel that reads a matrix: weights, scales, zero points, bias.
pub(crate) const MATRIX: &[Binding] = &[Binding::Read; 4];

/// Values of a row are padded to whole blocks of this many.
pub(crate) const BLOCK: usize = 32;

/// Ranks of a linear's tail are padded to whole chunks of this many.
pub(crate) const CHUNK: usize = 8;

/// Most workgroups in one dimension of a dispatch, by WebGPU's default limits.
const MAX_GROUPS: u32 = 65_535;

/// Folds many workgroups into x and y; shaders undo it.
pub(crate) fn fold(groups: usize, z: usize) -> [u32; 3] {
    let groups = groups.max(1) as u32;
    let x = groups.min(MAX_GROUPS);
    [x, groups.div_ceil(x), z as u32]
}

/// One compiled thing: two equal kernels share a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    /// `y = W x (+ tail)`, decode or prefill.
    Project(project::Project),
    /// The low-rank tail's inner values.
    Shrink(shrink::Shrink),
    /// The low-rank tail alone, for batches.
    Expand(expand::Expand),
    /// Norm and rounding of a step's input.
    Prepare(prepare::Prepare),
    /// Embedding rows.
    Embed(embed::Embed),
    /// Rotary embedding and cache append.
    Rope(rope::Rope),
    /// Attention over a span.
    Attention(attention::Attention),
    /// Spans together.
    Combine(attention::Combine),
    /// The likeliest token.
    Argmax(argmax::Argmax),
}

impl Kernel {
    /// Its parts in words, for labels and test messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Project(k) => k.name(),
            Self::Shrink(k) => k.name(),
            Self::Expand(k) => k.name(),
            Self::Prepare(k) => k.name(),
            Self::Embed(k) => k.name(),
            Self::Rope(k) => k.name(),
            Self::Attention(k) => k.name(),
            Self::Combine(k) => k.name(),
            Self::Argmax(k) => k.name(),
        }
    }

    /// What it binds.
    pub(crate) fn groups(&self) -> Groups {
        match self {
            Self::Project(k) => k.groups(),
            Self::Shrink(_) => shrink::GROUPS,
            Self::Expand(_) => expand::GROUPS,
            Self::Prepare(k) => k.groups(),
            Self::Embed(_) => embed::GROUPS,
            Self::Rope(_) => rope::GROUPS,
            Self::Attention(_) => attention::GROUPS,
            Self::Combine(_) => attention::COMBINE_GROUPS,
            Self::Argmax(_) => argmax::GROUPS,
        }
    }

    /// The joined WGSL.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::Project(k) => k.source(),
            Self::Shrink(k) => k.source(),
            Self::Expand(k) => k.source(),
            Self::Prepare(k) => k.source(),
            Self::Embed(k) => k.source(),
            Self::Rope(k) => k.source(),
            Self::Attention(k) => k.source(),
            Self::Combine(k) => k.source(),
            Self::Argmax(k) => k.source(),
        }
    }

    /// Every kernel that some device could need.
    pub(crate) fn all() -> Vec<Self> {
        let widths = Width::all();
        let mut all: Vec<Self> = project::Project::all().into_iter().map(Self::Project).collect();
        all.extend(shrink::Shrink::all(&widths).into_iter().map(Self::Shrink));
        all.extend(embed::Embed::all(&widths).into_iter().map(Self::Embed));
        for width in widths {
            for half in [false, true] {
                all.push(Self::Prepare(prepare::Prepare { width, int8: half }));
                all.push(Self::Rope(rope::Rope { workgroup: width.workgroup, half }));
                all.push(Self::Attention(attention::Attention { width, half }));
            }
            for tail in project::TailKind::ALL {
                all.push(Self::Expand(expand::Expand { workgroup: width.workgroup, tail }));
            }
            all.push(Self::Combine(attention::Combine { workgroup: width.workgroup }));
            all.push(Self::Argmax(argmax::Argmax { workgroup: width.workgroup }));
        }
        all.push(Self::Argmax(argmax::Argmax { workgroup: argmax::GPU_WORKGROUP }));
        let mut seen = std::collections::HashSet::new();
        all.retain(|kernel| seen.insert(*kernel));
        all
    }
}

/// Joins parts into one module; `f16` is enabled where a part uses 16-bit types.
pub(crate) fn join(workgroup: u32, f16: bool, parts: &[&str]) -> String {
    let mut source = String::new();
    if f16 {
        source.push_str("enable f16;\n");
    }
    source.push_str(&format!("const WORKGROUP: u32 = {workgroup}u;\n"));
    for part in parts {
        source.push('\n');
        source.push_str(part);
    }
    source
}
