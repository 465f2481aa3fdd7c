//! Low-rank branches as devices see them: `y += scaling * up · act(down · x)`.

use crate::error::{Error, Result};
use crate::weights::{DType, Tensor};

/// What stands between the two small matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BranchKind {
    /// Nothing: `s_l · B (A x)`.
    Lora,
    /// Exact (erf) GELU: `s_r · U gelu(D x)`, CA-LoRA's recovery module.
    Recovery,
    /// Nothing, but trained as recovery: it folds into a LoRA.
    LinearRecovery,
}

impl BranchKind {
    /// Whether a GELU is applied to the inner values.
    pub fn is_gelu(self) -> bool {
        self == Self::Recovery
    }
}

/// One small matrix: floats, or int8 with a scale a row.
#[derive(Clone, Debug)]
pub enum LowRank {
    /// (rows, cols) f32, f16 or bf16.
    Float(Tensor),
    /// (rows, cols) I8 and (rows) F32: `value * scale[row]`.
    Int8 {
        /// The integers.
        values: Tensor,
        /// One scale a row.
        scales: Tensor,
    },
}

impl LowRank {
    /// (rows, cols).
    pub fn shape(&self) -> (usize, usize) {
        let tensor = self.tensor();
        (tensor.shape[0], tensor.shape[1])
    }

    /// The tensor that holds the values.
    pub fn tensor(&self) -> &Tensor {
        match self {
            Self::Float(tensor) => tensor,
            Self::Int8 { values, .. } => values,
        }
    }

    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let (values, scales) = match self {
            Self::Float(tensor) => (tensor, None),
            Self::Int8 { values, scales } => (values, Some(scales)),
        };
        std::iter::once(values).chain(scales)
    }

    /// What it is stored as.
    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let (values, scales) = match self {
            Self::Float(tensor) => (tensor, None),
            Self::Int8 { values, scales } => (values, Some(scales)),
        };
        std::iter::once(values).chain(scales)
    }

    /// Whether f16 holds every value without loss of more than int8 or f16 storage already lost.
    pub fn fits_f16(&self) -> bool {
        !matches!(self, Self::Float(t) if t.dtype != DType::F16)
    }

    /// The same matrix in memory; see [`Tensor::copied`].
    pub(crate) fn copied(&self) -> Result<Self> {
        Ok(match self {
            Self::Float(tensor) => Self::Float(tensor.copied()?),
            Self::Int8 { values, scales } => {
                Self::Int8 { values: values.copied()?, scales: scales.copied()? }
            }
        })
    }

    fn prefetch(&self) {
        match self {
            Self::Float(tensor) => tensor.prefetch(),
            Self::Int8 { values, scales } => [values, scales].into_iter().for_each(Tensor::prefetch),
        }
    }

    /// Bytes in the file.
    pub fn byte_len(&self) -> usize {
        self.tensors().map(|tensor| tensor.bytes().len()).sum()
    }

    /// (rows, cols) as float32; refuses values that are not finite.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let values = match self {
            Self::Float(tensor) => tensor.to_f32()?,
            Self::Int8 { values, scales } => {
                let cols = values.shape[1];
                let scales = scales.to_f32()?;
                let bytes = values.elements::<i8>();
                bytes.iter().enumerate().map(|(i, v)| f32::from(*v) * scales[i / cols]).collect()
            }
        };
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => {
                let tensor = self.tensor();
                Err(Error::tensor(tensor.path(), &tensor.name, format!("element {at} is {}", values[at])))
            }
            None => Ok(values),
        }
    }
}

/// One branch of one linear.
#[derive(Clone, Debug)]
pub struct Branch {
    /// LoRA or recovery.
    pub kind: BranchKind,
    /// `s_l` or `s_r`.
    pub scaling: f32,
    /// (r, K): A or D.
    pub down: LowRank,
    /// (R, r): B or U.
    pub up: LowRank,
}

impl Branch {
    /// Refuses matrices that are not two-dimensional or disagree about the rank.
    pub(super) fn check(&self) -> Result<()> {
        for side in [&self.down, &self.up] {
            let tensor = side.tensor();
            if tensor.shape.len() != 2 || tensor.is_empty() {
                let reason = format!("has shape {:?}, expected two dimensions, none of them 0", tensor.shape);
                return Err(Error::tensor(tensor.path(), &tensor.name, reason));
            }
            if let LowRank::Float(tensor) = side {
                tensor.to_f32_range(0..0)?;
            }
        }
        let (down, up) = (self.down.shape().0, self.up.shape().1);
        if down != up {
            let tensor = self.up.tensor();
            let reason = format!("has rank {up}, its partner {} has {down}", self.down.tensor().name);
            return Err(Error::tensor(tensor.path(), &tensor.name, reason));
        }
        Ok(())
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.down.shape().0
    }
}

/// The branches of one adapter by linear: what a device makes resident, alone or beside those of other adapters.
#[derive(Clone, Debug, Default)]
pub struct Tail {
    /// For each [`crate::arch::LinearId`] its branches; empty where nothing is attached.
    pub branches: Vec<Vec<Branch>>,
}

impl Tail {
    /// Total rank beside one linear.
    pub fn rank(&self, linear: usize) -> usize {
        self.branches.get(linear).map_or(0, |list| list.iter().map(Branch::rank).sum())
    }

    /// Bytes of all branches in their files.
    pub fn byte_len(&self) -> usize {
        self.branches.iter().flatten().map(|b| b.down.byte_len() + b.up.byte_len()).sum()
    }

    /// A hash of everything that decides what the branches compute; reads them all.
    pub fn digest(&self) -> Result<[u8; 32]> {
        let mut hash = blake3::Hasher::new();
        let numbered = self.branches.iter().enumerate();
        for (linear, branch) in numbered.flat_map(|(i, list)| list.iter().map(move |b| (i, b))) {
            hash.update(&(linear as u64).to_le_bytes());
            hash.update(&[u8::from(branch.kind.is_gelu())]).update(&branch.scaling.to_bits().to_le_bytes());
            for tensor in [&branch.down, &branch.up].into_iter().flat_map(LowRank::tensors) {
                hash.update(format!("{:?} {:?}", tensor.dtype, tensor.shape).as_bytes());
                hash.update(tensor.copied()?.bytes());
            }
        }
        Ok(hash.finalize().into())
    }

    /// Whether any of the branches lie in this process's memory and in no file that everybody can read.
    pub fn is_private(&self) -> bool {
        let halves = self.branches.iter().flatten().flat_map(|b| [&b.down, &b.up]);
        halves.flat_map(LowRank::tensors).any(Tensor::is_private)
    }

    /// The same branches in memory of this process: what a device places is read from here, so that a file that is
    /// truncated meanwhile is [`Error::FileChanged`] and nothing worse.
    pub fn copied(mut self) -> Result<Self> {
        let halves = self.branches.iter_mut().flatten().flat_map(|b| [&mut b.down, &mut b.up]);
        Tensor::copy_all(&mut halves.flat_map(LowRank::tensors_mut).collect::<Vec<_>>())?;
        Ok(self)
    }

    /// Asks the system to read the branches' bytes soon; returns at once.
    pub(crate) fn prefetch(&self) {
        self.branches.iter().flatten().flat_map(|b| [&b.down, &b.up]).for_each(LowRank::prefetch);
    }
}
