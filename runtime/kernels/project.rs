//! `y = W x + up · inner` with its epilogue: matvec for decode, matmul for prefill, each in two families.

use super::caps::{Family, GPU_WORKGROUP, Reduce, Width};
use super::{Binding, Groups, MATRIX, fold, join, parts};

/// Which main: phase and family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shape {
    MatvecLanes,
    MatvecSplit,
    /// [`Shape::MatvecSplit`] for several tokens.
    BatchSplit,
    /// Several tokens, each with the sums of [`Shape::MatvecLanes`].
    MatmulLanes,
    MatmulSplit,
}

/// How many tokens a shape is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    One,
    Several,
    Many,
}

/// How many rows a pass has for a projection. It decides how sums are taken, so that a pass gives the same bits whoever shares
/// its walk over the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// A few: the reads of weights decide.
    Decode,
    /// Many: arithmetic does.
    Prefill,
}

impl Phase {
    /// That of a pass alone.
    pub(crate) fn of(rows: usize) -> Self {
        if rows <= DECODE_TOKENS { Self::Decode } else { Self::Prefill }
    }
}

/// How weights are stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WeightKind {
    F32,
    F16,
    Bf16,
    Int2,
    Int3,
    Int4,
    Int8,
}

/// How scales and zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ScaleKind {
    /// Dense weights.
    None,
    /// f16 pairs or f32, with or without stored zero points.
    Stored { half: bool, symmetric: bool },
}

/// How the low-rank tail is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TailKind {
    F32,
    /// f16 pairs, unpacked by a core builtin.
    F16,
    /// f16 through 16-bit storage.
    Half,
}

impl TailKind {
    /// All.
    pub(crate) const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Half];

    /// The part that reads it.
    pub(crate) const fn part(self) -> &'static str {
        match self {
            Self::F32 => parts::TAIL_F32,
            Self::F16 => parts::TAIL_F16,
            Self::Half => parts::TAIL_HALF,
        }
    }
}

/// What is added to a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tail {
    /// One adapter's branches, for all rows.
    Fused(TailKind),
    /// What [`Expand`](super::expand::Expand) has computed, to each row its own.
    Expanded,
}

/// A stored matrix as shaders see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MatrixKind {
    pub(crate) weights: WeightKind,
    pub(crate) scales: ScaleKind,
}

impl MatrixKind {
    /// The parts that read it.
    pub(crate) fn parts(self) -> Vec<&'static str> {
        let weights = match self.weights {
            WeightKind::F32 => parts::WEIGHTS_F32,
            WeightKind::F16 => parts::WEIGHTS_F16,
            WeightKind::Bf16 => parts::WEIGHTS_BF16,
            WeightKind::Int2 => parts::WEIGHTS_INT2,
            WeightKind::Int3 => parts::WEIGHTS_INT3,
            WeightKind::Int4 => parts::WEIGHTS_INT4,
            WeightKind::Int8 => parts::WEIGHTS_INT8,
        };
        match self.scales {
            ScaleKind::None => vec![weights, parts::SCALES_NONE],
            ScaleKind::Stored { half, symmetric } => vec![
                weights,
                if half { parts::SCALES_F16 } else { parts::SCALES_F32 },
                if symmetric { parts::ZEROS_SYMMETRIC } else { parts::ZEROS_STORED },
            ],
        }
    }

    /// Whether int8 activations can meet it.
    pub(crate) fn is_packed(self) -> bool {
        self.scales != ScaleKind::None
    }

    /// What people's models are made of, as calora and Hugging Face store them.
    pub(crate) fn is_usual(self) -> bool {
        self.weights != WeightKind::F32
            && matches!(self.scales, ScaleKind::None | ScaleKind::Stored { half: true, symmetric: true })
    }

    /// Every stored form.
    pub(crate) fn all() -> Vec<Self> {
        let dense = [WeightKind::F32, WeightKind::F16, WeightKind::Bf16];
        let mut all: Vec<Self> =
            dense.into_iter().map(|weights| Self { weights, scales: ScaleKind::None }).collect();
        for weights in [WeightKind::Int2, WeightKind::Int3] {
            for half in [true, false] {
                all.push(Self { weights, scales: ScaleKind::Stored { half, symmetric: true } });
            }
        }
        for weights in [WeightKind::Int4, WeightKind::Int8] {
            for (half, symmetric) in [(true, true), (true, false), (false, true), (false, false)] {
                all.push(Self { weights, scales: ScaleKind::Stored { half, symmetric } });
            }
        }
        all
    }
}

impl std::fmt::Display for MatrixKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.weights)?;
        match self.scales {
            ScaleKind::None => Ok(()),
            ScaleKind::Stored { half, symmetric } => {
                write!(f, " scales {}", if half { "f16" } else { "f32" })?;
                if symmetric { Ok(()) } else { write!(f, " asymmetric") }
            }
        }
    }
}

/// One projection kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Project {
    pub(crate) shape: Shape,
    pub(crate) width: Width,
    pub(crate) matrix: MatrixKind,
    /// int8 activations.
    pub(crate) int8: bool,
    pub(crate) tail: Option<Tail>,
}

/// What happens to a result; the values of `mode` in the shader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Store = 0,
    Add = 1,
    Gate = 2,
}

/// Parameters, in the shader's order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(crate) struct Params {
    pub(crate) rows: u32,
    pub(crate) blocks: u32,
    pub(crate) groups: u32,
    pub(crate) group_blocks: u32,
    pub(crate) x_row: u32,
    pub(crate) tokens: u32,
    pub(crate) y_row: u32,
    pub(crate) y_stride: u32,
    pub(crate) y_column: u32,
    pub(crate) mode: u32,
    pub(crate) has_bias: u32,
    pub(crate) tail_chunks: u32,
    pub(crate) inner_stride: u32,
    pub(crate) inner_offset: u32,
    pub(crate) up_first: u32,
    pub(crate) pad: u32,
}

/// The most tokens of a pass that count as decoding: what one read of the weights serves.
const DECODE_TOKENS: usize = 4;

/// The most rows of decoding passes in one walk: past it another read of the weights is little beside the arithmetic, and
/// working memory stays bounded.
pub(crate) const DECODE_ROWS: usize = 32;

/// Group 1: up, inner.
pub(crate) const ADAPTER: &[Binding] = &[Binding::Read, Binding::Read];

/// Group 1 where the products are there already.
pub(crate) const EXPANDED: &[Binding] = &[Binding::Read];

impl Shape {
    /// The kernel for `tokens` input rows of passes of a phase.
    pub(crate) fn choose(family: Family, phase: Phase, tokens: usize) -> Self {
        match (family, phase) {
            (Family::Lanes, _) if tokens == 1 => Self::MatvecLanes,
            (Family::Lanes, _) => Self::MatmulLanes,
            (Family::Split, Phase::Decode) if tokens == 1 => Self::MatvecSplit,
            (Family::Split, Phase::Decode) => Self::BatchSplit,
            (Family::Split, Phase::Prefill) => Self::MatmulSplit,
        }
    }

    /// What it is made for.
    pub(crate) fn load(self) -> Load {
        match self {
            Self::MatvecLanes | Self::MatvecSplit => Load::One,
            Self::BatchSplit => Load::Several,
            Self::MatmulLanes | Self::MatmulSplit => Load::Many,
        }
    }

    /// The kernel for several tokens that takes each one's sums as this one does.
    pub(crate) fn of_several(self) -> Self {
        match self {
            Self::MatvecLanes | Self::MatmulLanes => Self::MatmulLanes,
            Self::MatvecSplit | Self::BatchSplit => Self::BatchSplit,
            Self::MatmulSplit => Self::MatmulSplit,
        }
    }
}

impl Project {
    /// Kernels that never reduce are the same for every reduction.
    pub(crate) fn tidy(mut self) -> Self {
        if !matches!(self.shape, Shape::MatvecSplit | Shape::BatchSplit) {
            self.width.reduce = Reduce::Tree;
        }
        self
    }

    /// Workgroups for `rows` output rows and `tokens` input rows.
    pub(crate) fn grid(&self, rows: usize, tokens: usize) -> [u32; 3] {
        let lane_rows = 4 * self.width.workgroup as usize;
        match self.shape {
            Shape::MatvecLanes => fold(rows.div_ceil(lane_rows), tokens),
            Shape::MatvecSplit => fold(rows.div_ceil(4), tokens),
            Shape::BatchSplit => fold(rows.div_ceil(4), tokens.div_ceil(4)),
            Shape::MatmulLanes => fold(rows.div_ceil(lane_rows), tokens.div_ceil(4)),
            Shape::MatmulSplit => fold(rows.div_ceil(32), tokens.div_ceil(32)),
        }
    }

    pub(crate) fn groups(&self) -> Groups {
        const ACTIVATIONS: &[Binding] = &[Binding::Params, Binding::Read, Binding::Write];
        let tail = self.tail.map(|tail| if tail == Tail::Expanded { EXPANDED } else { ADAPTER });
        [Some(MATRIX), tail, Some(ACTIVATIONS)]
    }

    pub(crate) fn name(&self) -> String {
        let activations = if self.int8 { "int8" } else { "f32" };
        let tail = match self.tail {
            None => "none".to_owned(),
            Some(Tail::Fused(kind)) => format!("{kind:?}"),
            Some(Tail::Expanded) => "expanded".to_owned(),
        };
        format!("{:?} {} · {} · x {activations} · tail {tail}", self.shape, self.width, self.matrix)
    }

    pub(crate) fn source(&self) -> String {
        let (lane, main) = match self.shape {
            Shape::MatvecLanes => (parts::LANE_ONLY, parts::MATVEC_LANES),
            Shape::MatmulLanes => (parts::LANE_ONLY, parts::MATMUL_LANES),
            Shape::MatmulSplit => (parts::LANE_ONLY, parts::MATMUL_SPLIT),
            Shape::MatvecSplit => (self.width.reduce.part(), parts::MATVEC_SPLIT),
            Shape::BatchSplit => (self.width.reduce.part(), parts::BATCH_SPLIT),
        };
        let mut list = vec![lane, parts::BLOCK];
        list.extend(self.matrix.parts());
        list.push(if self.int8 { parts::ACTIVATIONS_INT8 } else { parts::ACTIVATIONS_F32 });
        list.push(parts::PROJECT);
        list.push(match self.tail {
            None => parts::TAIL_NONE,
            Some(Tail::Fused(kind)) => kind.part(),
            Some(Tail::Expanded) => parts::TAIL_EXPANDED,
        });
        list.push(main);
        join(self.width.workgroup, self.tail == Some(Tail::Fused(TailKind::Half)), &list)
    }

    /// Every combination that a device could need.
    pub(crate) fn all() -> Vec<Self> {
        let lanes = Width { workgroup: 8, reduce: Reduce::Tree };
        let tree = Width { workgroup: GPU_WORKGROUP, reduce: Reduce::Tree };
        let subgroup = Width { workgroup: GPU_WORKGROUP, reduce: Reduce::Subgroup };
        let shapes = [
            (Shape::MatvecLanes, lanes),
            (Shape::MatmulLanes, lanes),
            (Shape::MatvecLanes, tree),
            (Shape::MatmulLanes, tree),
            (Shape::MatvecSplit, tree),
            (Shape::MatvecSplit, subgroup),
            (Shape::BatchSplit, tree),
            (Shape::BatchSplit, subgroup),
            (Shape::MatmulSplit, tree),
        ];
        let fused = TailKind::ALL.map(|kind| Some(Tail::Fused(kind)));
        let mut all = Vec::new();
        for (shape, width) in shapes {
            for matrix in MatrixKind::all() {
                for tail in [None, Some(Tail::Expanded)].into_iter().chain(fused) {
                    all.push(Self { shape, width, matrix, int8: false, tail });
                    if matrix.is_packed() {
                        all.push(Self { shape, width, matrix, int8: true, tail });
                    }
                }
            }
        }
        all
    }
}
