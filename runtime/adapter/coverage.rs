//! The report of what an adapter touches in a model.

use std::fmt;

use super::branch::{BranchKind, Tail};
use crate::arch::Recipe;

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
    /// The base check.
    pub base: BaseCheck,
    /// Bytes of the branches.
    pub bytes: usize,
}

impl Coverage {
    pub(super) fn new(adapter: &str, recipe: &Recipe, tail: &Tail, base: BaseCheck) -> Self {
        let (mut touched, mut untouched) = (Vec::new(), Vec::new());
        for (linear, branches) in recipe.linears.iter().zip(&tail.branches) {
            let module = linear.path.clone();
            if branches.is_empty() {
                untouched.push(module);
            } else {
                let branches = branches.iter().map(|b| (b.kind, b.rank(), b.scaling)).collect();
                touched.push(Touched { module, branches });
            }
        }
        Self { adapter: adapter.to_owned(), touched, untouched, base, bytes: tail.byte_len() }
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.touched.len() + self.untouched.len();
        writeln!(
            f,
            "{}: {} of {all} linears, {} bytes of branches",
            self.adapter,
            self.touched.len(),
            self.bytes
        )?;
        match self.base {
            BaseCheck::Matched => writeln!(f, "base: matched by its id")?,
            BaseCheck::Unbound => writeln!(f, "base: the adapter carries no id; only shapes were checked")?,
        }
        for touched in &self.touched {
            write!(f, "  {:<44}", touched.module)?;
            for (kind, rank, scaling) in &touched.branches {
                let name = match kind {
                    BranchKind::Lora => "LoRA",
                    BranchKind::Recovery => "recovery",
                    BranchKind::LinearRecovery => "linear recovery",
                };
                write!(f, " {name} r{rank} x{scaling}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
