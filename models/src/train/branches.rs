//! What is trained: low-rank branches beside the linears of a model.

use std::collections::BTreeMap;

use anyhow::Result;
use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use calora::adapter::{BranchKind, LowRank, Tail};
use calora::arch::Recipe;

/// One branch, `scaling * up · act(down · x)`.
#[derive(Clone, Debug)]
pub struct Branch {
    /// LoRA or recovery.
    pub kind: BranchKind,
    /// `s_l` or `s_r`; not trained.
    pub scaling: f32,
    /// (r, K): A or D.
    pub down: Tensor<2>,
    /// (R, r): B or U.
    pub up: Tensor<2>,
}

impl Branch {
    /// (T, K) to (T, R).
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let inner = x.matmul(self.down.clone().transpose());
        let inner = if self.kind.is_gelu() { activation::gelu(inner) } else { inner };
        // The scaling meets the narrow side, which is the cheaper one.
        let inner = if self.scaling == 1.0 { inner } else { inner.mul_scalar(self.scaling) };
        inner.matmul(self.up.clone().transpose())
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.down.dims()[0]
    }
}

/// The branches of every linear, in the order of [`Recipe::linears`].
#[derive(Clone, Debug, Default)]
pub struct Branches {
    /// For each linear its branches.
    pub of: Vec<Vec<Branch>>,
}

/// Values of one small matrix, (rows, cols).
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Row-major.
    pub data: Vec<f32>,
}

impl Values {
    /// Takes the values out of a tensor.
    pub fn read(tensor: &Tensor<2>) -> Result<Self> {
        let [rows, cols] = tensor.dims();
        Ok(Self { rows, cols, data: tensor.clone().inner().try_into_vec_as::<f32>()? })
    }

    /// As a tensor.
    pub fn tensor(&self, device: &Device, dtype: DType) -> Tensor<2> {
        Tensor::from_data(TensorData::new(self.data.clone(), [self.rows, self.cols]), (device, dtype))
    }
}

impl Branches {
    /// None, for a model with this many linears.
    pub fn none(linears: usize) -> Self {
        Self { of: vec![Vec::new(); linears] }
    }

    /// An opened adapter's, as float tensors.
    pub fn from_tail(tail: &Tail, device: &Device, dtype: DType) -> Result<Self> {
        let tensor = |matrix: &LowRank| -> Result<Tensor<2>> {
            let (rows, cols) = matrix.shape();
            Ok(Values { rows, cols, data: matrix.to_f32()? }.tensor(device, dtype))
        };
        let read = |branch: &calora::adapter::Branch| -> Result<Branch> {
            Ok(Branch {
                kind: branch.kind,
                scaling: branch.scaling,
                down: tensor(&branch.down)?,
                up: tensor(&branch.up)?,
            })
        };
        let of = tail.branches.iter().map(|list| list.iter().map(read).collect()).collect::<Result<_>>()?;
        Ok(Self { of })
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.of.iter().all(Vec::is_empty)
    }

    /// Trainable numbers.
    pub fn parameters(&self) -> usize {
        self.tensors().map(|tensor| tensor.dims().iter().product::<usize>()).sum()
    }

    /// Every tensor, in a fixed order: by linear, by branch, down before up.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor<2>> {
        self.of.iter().flatten().flat_map(|branch| [&branch.down, &branch.up])
    }

    /// The same branches with other tensors, in the order of [`Self::tensors`].
    pub fn with(&self, tensors: impl IntoIterator<Item = Tensor<2>>) -> Self {
        let mut next = tensors.into_iter();
        let mut out = self.clone();
        for branch in out.of.iter_mut().flatten() {
            if let (Some(down), Some(up)) = (next.next(), next.next()) {
                (branch.down, branch.up) = (down, up);
            }
        }
        out
    }

    /// Leaves of a new tape.
    pub fn tracked(&self) -> Self {
        self.with(self.tensors().map(|tensor| tensor.clone().inner().autodiff().require_grad()))
    }

    /// Names of the tensors, in their order: `{module}.lora_A`, `.lora_B`, `.recovery_D`, `.recovery_U`.
    pub fn names(&self, recipe: &Recipe) -> Vec<String> {
        let mut names = Vec::new();
        for (list, linear) in self.of.iter().zip(&recipe.linears) {
            for branch in list {
                let pair = match branch.kind {
                    BranchKind::Lora => ["lora_A", "lora_B"],
                    BranchKind::Recovery | BranchKind::LinearRecovery => ["recovery_D", "recovery_U"],
                };
                names.extend(pair.map(|side| format!("{}.{side}", linear.path)));
            }
        }
        names
    }

    /// Every tensor's values, in their order.
    pub fn values(&self) -> Result<Vec<Values>> {
        self.tensors().map(Values::read).collect()
    }

    /// A hash of all values and scalings: what a run or a teacher's states depend on.
    pub fn digest(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for branch in self.of.iter().flatten() {
            hasher.update(&branch.scaling.to_le_bytes());
        }
        for values in self.values()? {
            hasher.update(&[values.rows as u64, values.cols as u64].map(u64::to_le_bytes).concat());
            hasher.update(bytemuck::cast_slice(&values.data));
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// As the branches of a file, by module path.
    pub fn modules(&self, recipe: &Recipe) -> Result<BTreeMap<String, Vec<calora::adapter::Branch>>> {
        let float = |name: &str, tensor: &Tensor<2>| -> Result<LowRank> {
            let values = Values::read(tensor)?;
            let shape = [values.rows, values.cols];
            Ok(LowRank::Float(calora::weights::Tensor::from_f32(name, &shape, &values.data)?))
        };
        let mut modules = BTreeMap::new();
        for (list, linear) in self.of.iter().zip(&recipe.linears).filter(|(list, _)| !list.is_empty()) {
            let branches = list.iter().map(|branch| {
                Ok(calora::adapter::Branch {
                    kind: branch.kind,
                    scaling: branch.scaling,
                    down: float("down", &branch.down)?,
                    up: float("up", &branch.up)?,
                })
            });
            modules.insert(linear.path.clone(), branches.collect::<Result<Vec<_>>>()?);
        }
        Ok(modules)
    }
}
