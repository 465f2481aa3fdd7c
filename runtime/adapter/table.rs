//! The branches of an opened file in a few kilobytes: one table, where tensors would have a name and a shape each.
//!
//! Hundreds of files stay open and few are in use, so tensors are made when they are asked for. Invariant: what comes out
//! is what was put in, and an open file holds less than its header.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::branch::{Branch, BranchKind, LowRank, Tail};
use super::task::Modules;
use crate::error::{Error, Result};
use crate::weights::{Backing, DType, Tensor};

/// The branches of one file by module.
#[derive(Default)]
pub(crate) struct BranchTable {
    /// What all tensors lie in, and its name; absent without tensors.
    file: Option<(Backing, Arc<PathBuf>)>,
    /// All names, one after the other.
    names: Box<str>,
    /// Those of one module side by side.
    entries: Box<[Entry]>,
}

/// One branch.
struct Entry {
    kind: BranchKind,
    scaling: f32,
    module: Name,
    down: Half,
    up: Half,
}

/// One small matrix.
struct Half {
    name: Name,
    dtype: DType,
    shape: [u32; 2],
    /// The first byte in the file.
    start: usize,
    /// That of an int8 matrix's scales; never 0, where a file has the length of its header.
    scales: Option<NonZeroUsize>,
}

/// Where a name stands among all.
struct Name {
    start: u32,
    len: u32,
}

impl fmt::Debug for BranchTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} branches", self.entries.len())
    }
}

impl BranchTable {
    /// Takes branches whose shapes were checked and whose tensors lie in one file.
    pub(super) fn pack(modules: &Modules) -> Result<Self> {
        let mut branches = modules.values().flatten();
        let file = branches.next().map(|b| b.down.tensor()).map(|t| (t.backing.clone(), t.path.clone()));
        let mut names = String::new();
        let mut entries = Vec::with_capacity(modules.values().map(Vec::len).sum());
        for (module, branch) in modules.iter().flat_map(|(m, list)| list.iter().map(move |b| (m, b))) {
            let (down, up) = (Half::pack(&branch.down, &mut names)?, Half::pack(&branch.up, &mut names)?);
            // A tensor is named by its module.
            let module = match names[down.name.range()].find(module.as_str()) {
                Some(at) => Name { start: down.name.start + at as u32, len: module.len() as u32 },
                None => Name::push(module, &mut names),
            };
            entries.push(Entry { kind: branch.kind, scaling: branch.scaling, module, down, up });
        }
        Ok(Self { file, names: names.into(), entries: entries.into() })
    }

    /// Modules with their branches, in the order of their names.
    pub(super) fn modules(&self) -> impl Iterator<Item = (&str, Vec<Branch>)> {
        let lists = self.entries.chunk_by(|a, b| self.module(a) == self.module(b));
        lists.filter_map(|list| {
            Some((self.module(list.first()?), list.iter().filter_map(|entry| self.branch(entry)).collect()))
        })
    }

    /// Whether any branch is of a kind.
    pub(super) fn any(&self, is: impl Fn(BranchKind) -> bool) -> bool {
        self.entries.iter().any(|entry| is(entry.kind))
    }

    /// The module of each branch.
    pub(super) fn branch_modules(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| self.module(entry))
    }

    /// Bytes of all branches in the file.
    pub(super) fn byte_len(&self) -> usize {
        self.entries.iter().flat_map(|entry| [&entry.down, &entry.up]).map(Half::byte_len).sum()
    }

    fn module(&self, entry: &Entry) -> &str {
        &self.names[entry.module.range()]
    }

    fn branch(&self, entry: &Entry) -> Option<Branch> {
        let file = self.file.as_ref()?;
        let half = |half: &Half| half.unpack(file, &self.names[half.name.range()]);
        let (down, up) = (half(&entry.down), half(&entry.up));
        Some(Branch { kind: entry.kind, scaling: entry.scaling, down, up })
    }
}

impl Name {
    fn push(name: &str, names: &mut String) -> Self {
        let start = names.len() as u32;
        names.push_str(name);
        Self { start, len: name.len() as u32 }
    }

    fn range(&self) -> Range<usize> {
        self.start as usize..(self.start + self.len) as usize
    }
}

impl Half {
    fn pack(matrix: &LowRank, names: &mut String) -> Result<Self> {
        let tensor = matrix.tensor();
        let ((rows, cols), scales) = match matrix {
            LowRank::Float(_) => (matrix.shape(), None),
            LowRank::Int8 { scales, .. } => (matrix.shape(), NonZeroUsize::new(scales.range.start)),
        };
        let (Ok(rows), Ok(cols)) = (rows.try_into(), cols.try_into()) else {
            let reason = format!("has shape {:?}, more than can be counted", tensor.shape);
            return Err(Error::tensor(tensor.path(), &tensor.name, reason));
        };
        let (name, dtype, start) = (Name::push(&tensor.name, names), tensor.dtype, tensor.range.start);
        Ok(Self { name, dtype, shape: [rows, cols], start, scales })
    }

    fn unpack(&self, (backing, path): &(Backing, Arc<PathBuf>), name: &str) -> LowRank {
        let tensor = |name: &str, dtype: DType, shape: &[usize], start: usize| Tensor {
            backing: backing.clone(),
            range: start..start + shape.iter().product::<usize>() * dtype.size(),
            path: path.clone(),
            name: name.into(),
            dtype,
            shape: shape.to_vec(),
        };
        let shape = self.shape.map(|n| n as usize);
        let values = tensor(name, self.dtype, &shape, self.start);
        match self.scales {
            None => LowRank::Float(values),
            Some(start) => {
                let scales = tensor(&format!("{name}_scale"), DType::F32, &shape[..1], start.get());
                LowRank::Int8 { values, scales }
            }
        }
    }

    fn byte_len(&self) -> usize {
        let [rows, cols] = self.shape.map(|n| n as usize);
        rows * cols * self.dtype.size() + self.scales.map_or(0, |_| rows * DType::F32.size())
    }
}

/// An adapter's branches bound to a model: made, or to be made of an open file's table.
#[derive(Clone, Debug)]
pub(crate) enum BoundTail {
    Made(Tail),
    Packed {
        table: Arc<BranchTable>,
        /// Of the model's.
        linears: usize,
        /// That of each branch.
        places: Box<[u32]>,
    },
}

impl BoundTail {
    /// The branches by linear.
    pub(crate) fn tail(&self) -> Cow<'_, Tail> {
        match self {
            Self::Made(tail) => Cow::Borrowed(tail),
            Self::Packed { table, linears, places } => {
                let mut branches = vec![Vec::new(); *linears];
                for (entry, place) in table.entries.iter().zip(places) {
                    if let Some(list) = branches.get_mut(*place as usize) {
                        list.reserve_exact(1);
                        list.extend(table.branch(entry));
                    }
                }
                Cow::Owned(Tail { branches })
            }
        }
    }

    /// Bytes of all branches in their file.
    pub(crate) fn byte_len(&self) -> usize {
        match self {
            Self::Made(tail) => tail.byte_len(),
            Self::Packed { table, .. } => table.byte_len(),
        }
    }
}
