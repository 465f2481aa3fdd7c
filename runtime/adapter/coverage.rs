//! The report of what an adapter touches in a model, and of what about it deserves a second look.
//!
//! Invariant: it describes; what must not be applied is refused in [`super::TaskAdapter::bind`] and never gets here.

use std::collections::BTreeSet;
use std::fmt;

use super::branch::{Branch, BranchKind, LowRank, Tail};
use crate::arch::Recipe;
use crate::error::Result;
use crate::weights::Tensor;

/// Whether the adapter is known to belong to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseCheck {
    /// The ids agree.
    Matched,
    /// The adapter has no id: shapes fit, more could not be checked.
    Unbound,
}

/// One linear of the model and what is attached to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Touched {
    /// Module path.
    pub module: String,
    /// Kind, rank and scaling of each branch.
    pub branches: Vec<(BranchKind, usize, f32)>,
}

/// What an adapter touches.
#[derive(Clone, Debug, PartialEq)]
pub struct Coverage {
    /// The adapter's name.
    pub adapter: String,
    /// Linears with branches.
    pub touched: Vec<Touched>,
    /// Linears without.
    pub untouched: Vec<String>,
    /// Of the touched, those whose branches add nothing: a matrix of zeros, or a scaling of 0.
    pub idle: Vec<String>,
    /// Of the untouched, those that a PEFT configuration targets although its file has no tensors for them. PEFT
    /// leaves such a module as it is, too, but the file may be incomplete.
    pub missing: Vec<String>,
    /// Configuration fields that could not be evaluated (patterns with look-around); the tensors decided alone.
    pub unchecked: Vec<String>,
    /// The base check.
    pub base: BaseCheck,
    /// Bytes of the branches.
    pub bytes: usize,
}

impl Coverage {
    pub(super) fn new(adapter: &str, recipe: &Recipe, tail: &Tail, base: BaseCheck) -> Result<Self> {
        let (mut touched, mut untouched, mut idle) = (Vec::new(), Vec::new(), Vec::new());
        for (linear, list) in recipe.linears.iter().zip(&tail.branches) {
            let module = linear.path.clone();
            if list.is_empty() {
                untouched.push(module);
                continue;
            }
            let mut nothing = true;
            for branch in list {
                nothing = nothing && adds_nothing(branch)?;
            }
            if nothing {
                idle.push(module.clone());
            }
            let branches = list.iter().map(|b| (b.kind, b.rank(), b.scaling)).collect();
            touched.push(Touched { module, branches });
        }
        Ok(Self {
            adapter: adapter.to_owned(),
            touched,
            untouched,
            idle,
            missing: Vec::new(),
            unchecked: Vec::new(),
            base,
            bytes: tail.byte_len(),
        })
    }

    /// Whether no branch adds anything: an adapter that was never trained. Legal, and probably a mistake.
    pub fn does_nothing(&self) -> bool {
        self.idle.len() == self.touched.len()
    }
}

/// Stops at the first value that is not zero, so that a trained branch costs one page of its file.
fn adds_nothing(branch: &Branch) -> Result<bool> {
    Ok(branch.scaling == 0.0 || is_zero(&branch.up)? || is_zero(&branch.down)?)
}

fn is_zero(matrix: &LowRank) -> Result<bool> {
    let zero = |tensor: &Tensor| {
        let size = tensor.dtype.size();
        // The sign bit stands in the last byte of a little-endian float: -0 is zero, too.
        let zero = |element: &[u8]| match element.split_last() {
            Some((last, rest)) => rest.iter().all(|b| *b == 0) && (*last == 0 || (size > 1 && *last == 0x80)),
            None => true,
        };
        tensor.all(|piece| piece.chunks_exact(size).all(zero))
    };
    match matrix {
        LowRank::Float(tensor) => zero(tensor),
        LowRank::Int8 { values, scales } => Ok(zero(values)? || zero(scales)?),
    }
}

/// Linears with the same name in different layers, as one line.
struct Kind<'a> {
    name: &'a str,
    linears: usize,
    branches: Vec<&'a [(BranchKind, usize, f32)]>,
}

impl Kind<'_> {
    /// `r8 x2`, or ranges where layers differ.
    fn describe(&self, recovery: bool) -> String {
        let branches = self.branches.iter().copied().flatten();
        let of_kind = branches.filter(|(kind, _, _)| (*kind != BranchKind::Lora) == recovery);
        let (mut ranks, mut scalings, mut linear) = (BTreeSet::new(), Vec::new(), false);
        for (kind, rank, scaling) in of_kind {
            ranks.insert(*rank);
            scalings.push(*scaling);
            linear |= *kind == BranchKind::LinearRecovery;
        }
        let (Some(low), Some(high)) = (ranks.first(), ranks.last()) else { return "-".into() };
        scalings.sort_by(f32::total_cmp);
        let range = |low: String, high: String| if low == high { low } else { format!("{low}..{high}") };
        let (first, last) = (scalings.first().unwrap_or(&0.0), scalings.last().unwrap_or(&0.0));
        let text = format!(
            "r{} x{}",
            range(low.to_string(), high.to_string()),
            range(format!("{}", round(*first)), format!("{}", round(*last)))
        );
        if linear { format!("{text} (linear)") } else { text }
    }
}

/// Four digits are enough for people.
fn round(value: f32) -> f64 {
    (f64::from(value) * 1e4).round() / 1e4
}

/// The linear's name without its layer.
fn kind_of(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.touched.len() + self.untouched.len();
        let touched = self.touched.len();
        writeln!(f, "{}: {touched} of {all} linears, {} bytes of branches", self.adapter, self.bytes)?;
        match self.base {
            BaseCheck::Matched => writeln!(f, "base: matched by its id")?,
            BaseCheck::Unbound => writeln!(f, "base: the adapter carries no id; only shapes were checked")?,
        }
        let mut kinds: Vec<Kind<'_>> = Vec::new();
        let touched = self.touched.iter().map(|t| (t.module.as_str(), Some(t.branches.as_slice())));
        for (module, branches) in touched.chain(self.untouched.iter().map(|m| (m.as_str(), None))) {
            let name = kind_of(module);
            let at = kinds.iter().position(|k| k.name == name).unwrap_or_else(|| {
                kinds.push(Kind { name, linears: 0, branches: Vec::new() });
                kinds.len() - 1
            });
            kinds[at].linears += 1;
            kinds[at].branches.extend(branches);
        }
        writeln!(f, "  {:<12} {:<10} {:<20} recovery", "linear", "attached", "LoRA")?;
        for kind in &kinds {
            let attached = format!("{} of {}", kind.branches.len(), kind.linears);
            writeln!(
                f,
                "  {:<12} {attached:<10} {:<20} {}",
                kind.name,
                kind.describe(false),
                kind.describe(true)
            )?;
        }
        if self.does_nothing() {
            writeln!(f, "warning: every branch is zero: this adapter does nothing")?;
        } else if let Some(first) = self.idle.first() {
            writeln!(f, "warning: the branches of {} linears are zero, of {first} first", self.idle.len())?;
        }
        if let Some(first) = self.missing.first() {
            let count = self.missing.len();
            writeln!(f, "warning: {count} targeted linears have no tensors in the file, {first} first")?;
        }
        self.unchecked.iter().try_for_each(|field| writeln!(f, "warning: not evaluated: {field}"))
    }
}
