//! Which kernels may run in place of another: the same bindings, parameters and layout, other workgroups.
//!
//! Invariant: results differ only by the order in which float32 sums are taken, so that a device may choose any.

use super::Kernel;
use super::argmax::{Argmax, GPU_WORKGROUP as ARGMAX_WORKGROUP};
use super::attention::{Attention, Combine};
use super::caps::{Caps, Family, GPU_WORKGROUP, Reduce, Width};
use super::embed::Embed;
use super::expand::Expand;
use super::prepare::Prepare;
use super::project::{MatrixKind, Phase, Project, Shape, Tail, TailKind};
use super::rope::Rope;
use super::shrink::Shrink;

/// One kind of kernel, in and out of [`Kernel`].
pub(crate) trait Variant: Copy + Into<Kernel> {
    /// The kernel, where it is of this kind.
    fn of(kernel: Kernel) -> Option<Self>;
}

macro_rules! variants {
    ($($name:ident),*) => {$(
        impl From<$name> for Kernel {
            fn from(kernel: $name) -> Self {
                Self::$name(kernel)
            }
        }

        impl Variant for $name {
            fn of(kernel: Kernel) -> Option<Self> {
                match kernel {
                    Kernel::$name(kernel) => Some(kernel),
                    _ => None,
                }
            }
        }
    )*};
}

variants!(Project, Shrink, Expand, Prepare, Embed, Rope, Attention, Combine, Argmax);

/// The widths that a device can run, its own first.
fn widths(caps: &Caps) -> Vec<Width> {
    let mut all = vec![caps.width()];
    for width in Width::all() {
        let fits = match (caps.family, width.reduce) {
            // A workgroup is one subgroup only where every subgroup has that size.
            (Family::Lanes, Reduce::Single) => caps.subgroups && width.workgroup == caps.subgroup_size,
            (Family::Split, Reduce::Single) => false,
            (Family::Lanes, Reduce::Tree) => true,
            (Family::Split, Reduce::Tree) => width.workgroup == GPU_WORKGROUP,
            (_, Reduce::Subgroup) => caps.subgroups,
        };
        if fits && !all.contains(&width) {
            all.push(width);
        }
    }
    all
}

/// Workgroups of kernels without a reduction, the wanted one first.
fn workgroups(wanted: u32) -> Vec<u32> {
    let others = [GPU_WORKGROUP, 8].into_iter().filter(|size| *size != wanted);
    std::iter::once(wanted).chain(others).collect()
}

impl Project {
    fn variants(self, caps: &Caps) -> Vec<Self> {
        let tree = Width { workgroup: GPU_WORKGROUP, reduce: Reduce::Tree };
        let lanes = match caps.family {
            Family::Lanes => caps.width(),
            Family::Split => tree,
        };
        let subgroup = Width { reduce: Reduce::Subgroup, ..tree };
        let mut all = vec![self];
        let rows = [
            (caps.subgroups, Shape::MatvecSplit, subgroup),
            (true, Shape::MatvecSplit, tree),
            (caps.subgroups, Shape::BatchSplit, subgroup),
            (true, Shape::BatchSplit, tree),
            (true, Shape::MatvecLanes, lanes),
            (true, Shape::MatmulSplit, tree),
            (true, Shape::MatmulLanes, lanes),
        ];
        // Every shape takes any number of tokens: those made for others are the last resort.
        for own in [true, false] {
            for (exists, shape, width) in rows {
                let kernel = Self { shape, width, ..self }.tidy();
                if exists && own == (shape.load() == self.shape.load()) && !all.contains(&kernel) {
                    all.push(kernel);
                }
            }
        }
        all
    }
}

impl Project {
    /// The kernel whose choice this one's follows, so that a pass gives the same bits with other adapters beside it and with
    /// other passes: the same without an adapter, and before that the same for one token.
    pub(crate) fn leader(self) -> Option<Self> {
        match (self.tail, self.shape) {
            (Some(_), _) => Some(Self { tail: None, ..self }),
            (None, Shape::BatchSplit) => Some(Self { shape: Shape::MatvecSplit, ..self }),
            (None, _) => None,
        }
    }

    /// Whether it takes its sums as the leader of `wanted` does, which was chosen to be `leader`.
    pub(crate) fn follows(self, wanted: Self, leader: Self) -> bool {
        let shape = match wanted.tail {
            None => leader.shape.of_several(),
            Some(_) => leader.shape,
        };
        (self.shape, self.width) == (shape, leader.width)
    }
}

impl Kernel {
    /// This kernel, which the device's capabilities call for, and those that may run in its place, the best guess first.
    pub(crate) fn variants(self, caps: &Caps) -> Vec<Self> {
        fn each<W, K: Into<Kernel>>(widths: Vec<W>, make: impl Fn(W) -> K) -> Vec<Kernel> {
            widths.into_iter().map(|width| make(width).into()).collect()
        }
        match self {
            Self::Project(k) => each(k.variants(caps), |k| k),
            Self::Shrink(k) => each(widths(caps), |width| Shrink { width, ..k }),
            Self::Prepare(k) => each(widths(caps), |width| Prepare { width, ..k }),
            Self::Attention(k) => each(widths(caps), |width| Attention { width, ..k }),
            Self::Embed(k) => each(workgroups(k.workgroup), |workgroup| Embed { workgroup, ..k }),
            Self::Expand(k) => each(workgroups(k.workgroup), |workgroup| Expand { workgroup, ..k }),
            Self::Rope(k) => each(workgroups(k.workgroup), |workgroup| Rope { workgroup, ..k }),
            Self::Combine(k) => each(workgroups(k.workgroup), |workgroup| Combine { workgroup }),
            Self::Argmax(k) => each(workgroups(k.workgroup), |workgroup| Argmax { workgroup }),
        }
    }

    /// What a device with these capabilities calls for, over all models: every stored form of weights, or the usual ones.
    pub(crate) fn wanted(caps: &Caps, every: bool) -> Vec<Self> {
        let width = caps.width();
        let usual = |kind: &&MatrixKind| every || kind.is_usual();
        let half = if caps.f16 { TailKind::Half } else { TailKind::F16 };
        let tails = if every { vec![half, TailKind::F16, TailKind::F32] } else { vec![half] };
        let added: Vec<Option<Tail>> = [None, Some(Tail::Expanded)]
            .into_iter()
            .chain(tails.iter().map(|kind| Some(Tail::Fused(*kind))))
            .collect();
        let kinds = MatrixKind::all();
        let mut all = Vec::new();
        for matrix in kinds.iter().filter(usual).copied() {
            all.push(Embed { workgroup: width.workgroup, matrix }.into());
            let shapes = [(Phase::Decode, 1), (Phase::Decode, 4), (Phase::Prefill, 64)];
            for (i, (phase, tokens)) in shapes.into_iter().enumerate() {
                let shape = Shape::choose(caps.family, phase, tokens);
                if shapes[..i]
                    .iter()
                    .any(|(phase, tokens)| Shape::choose(caps.family, *phase, *tokens) == shape)
                {
                    continue;
                }
                for int8 in [false, true].into_iter().filter(|int8| !int8 || matrix.is_packed()) {
                    for tail in &added {
                        all.push(Project { shape, width, matrix, int8, tail: *tail }.tidy().into());
                    }
                }
            }
        }
        for tail in tails {
            all.push(Shrink { width, tail }.into());
            all.push(Expand { workgroup: width.workgroup, tail }.into());
        }
        for half in [false, true] {
            all.push(Prepare { width, int8: half }.into());
            all.push(Rope { workgroup: width.workgroup, half }.into());
            all.push(Attention { width, half }.into());
        }
        all.push(Combine { workgroup: width.workgroup }.into());
        all.push(Argmax::of_device(caps).into());
        all
    }
}

impl Argmax {
    /// The kernel that a device calls for.
    pub(crate) fn of_device(caps: &Caps) -> Self {
        let workgroup = match caps.family {
            Family::Lanes => caps.width().workgroup,
            Family::Split => ARGMAX_WORKGROUP,
        };
        Self { workgroup }
    }
}
