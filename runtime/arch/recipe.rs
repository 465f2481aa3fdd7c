//! The recipe: which tensors a decoder has and which steps turn token ids into logits.
//!
//! Shape letters used everywhere: `T` tokens in this step, `C` channels (hidden size), `R` rows (output channels), `K`
//! inputs of a linear, `G` group size, `H` heads, `D` head size, `S` positions in the cache, `r` rank.

use std::ops::Range;

/// Index of a weight matrix in [`Recipe::matrices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId(pub usize);

/// Index of a norm weight or a bias in [`Recipe::vectors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VectorId(pub usize);

/// Index of a linear in [`Recipe::linears`]; adapters attach to these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinearId(pub usize);

/// A matrix the checkpoint must have: `{path}.weight`, or its packed form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    /// Module path, `model.layers.0.mlp.up_proj`.
    pub path: String,
    /// Another module that may hold the same matrix (tied embeddings are stored under either name).
    pub alias: Option<String>,
    /// R.
    pub rows: usize,
    /// K.
    pub cols: usize,
}

/// A vector the checkpoint must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorSpec {
    /// Tensor name, `model.norm.weight`.
    pub name: String,
    /// Its length.
    pub len: usize,
}

/// `y = W x + bias`, with the name that adapters use for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Module path; differs from the matrix's only where weights are tied (`lm_head`).
    pub path: String,
    /// W.
    pub matrix: MatrixId,
    /// The bias, where the configuration has one.
    pub bias: Option<VectorId>,
}

/// The activation between a gate and its product with the up projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

/// Working memory of one forward pass, a row a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// (T, C), what layers add to.
    Residual,
    /// (T, H * D).
    Query,
    /// (T, KV heads * D).
    Key,
    /// (T, KV heads * D).
    Value,
    /// (T, H * D), the output of attention.
    Attended,
    /// (T, MLP width), act(gate) * up.
    Gated,
    /// (T wanted, vocabulary).
    Logits,
}

/// Where a projection's result goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Each linear to a slot of its own, in order.
    Store(Vec<Slot>),
    /// The one linear is added to the residual.
    AddToResidual,
    /// Two linears, gate and up: `act(gate) * up` to [`Slot::Gated`].
    Gated(Activation),
}

impl Output {
    /// Whether it is the logits, of which only wanted rows are computed.
    pub(crate) fn is_logits(&self) -> bool {
        matches!(self, Self::Store(slots) if slots.contains(&Slot::Logits))
    }
}

/// One step; a device may fuse as it likes as long as the result is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Residual = rows of the embedding.
    Embed {
        /// (vocabulary, C).
        table: MatrixId,
    },
    /// Linears that share one input, optionally RMS-normed first. With an adapter, each linear adds its branches.
    Project {
        /// RMS norm weight applied to the input (over the whole row).
        norm: Option<VectorId>,
        /// The input rows.
        input: Slot,
        /// The linears.
        linears: Vec<LinearId>,
        /// What happens to the results.
        output: Output,
    },
    /// Rotary embedding of Query and Key, append Key and Value to the layer's cache, causal attention, to Attended.
    Attend {
        /// The layer, which is also the cache's index.
        layer: usize,
    },
}

/// Dimensions of a decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// C.
    pub hidden: usize,
    /// MLP width.
    pub mlp: usize,
    /// Layers.
    pub layers: usize,
    /// H, query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// The longest position the model was made for.
    pub context: usize,
}

impl ModelShape {
    /// Elements of one row of a slot.
    pub fn width(&self, slot: Slot) -> usize {
        match slot {
            Slot::Residual => self.hidden,
            Slot::Query | Slot::Attended => self.heads * self.head_dim,
            Slot::Key | Slot::Value => self.kv_heads * self.head_dim,
            Slot::Gated => self.mlp,
            Slot::Logits => self.vocab,
        }
    }
}

/// Rotary position embedding, half-split pairs `(i, i + D/2)` as Hugging Face stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// (D/2) angle per position, scaling already applied; computed in float64.
    pub inverse_frequencies: Vec<f64>,
}

/// A model as plain data.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// `model_type` of the configuration.
    pub architecture: String,
    /// Dimensions.
    pub shape: ModelShape,
    /// Added to the mean square in every RMS norm.
    pub norm_eps: f32,
    /// Positions.
    pub rope: Rope,
    /// Every matrix, each once.
    pub matrices: Vec<MatrixSpec>,
    /// Every norm weight and bias.
    pub vectors: Vec<VectorSpec>,
    /// Every linear that an adapter can attach to.
    pub linears: Vec<Linear>,
    /// From token ids to logits.
    pub steps: Vec<Step>,
}

impl Recipe {
    /// The linear with this module path.
    pub fn linear(&self, path: &str) -> Option<LinearId> {
        self.linears.iter().position(|l| l.path == path).map(LinearId)
    }

    /// Ranges of steps between which nothing but the residual lives: one ends wherever the residual was changed.
    pub fn stages(&self) -> Vec<Range<usize>> {
        let mut stages = Vec::new();
        let mut start = 0;
        for (i, step) in self.steps.iter().enumerate() {
            let changed = match step {
                Step::Embed { .. } => true,
                Step::Project { output, .. } => *output == Output::AddToResidual,
                Step::Attend { .. } => false,
            };
            if changed || i + 1 == self.steps.len() {
                stages.push(start..i + 1);
                start = i + 1;
            }
        }
        stages
    }

    /// (R, K) of a linear.
    pub fn linear_shape(&self, id: LinearId) -> (usize, usize) {
        let matrix = &self.matrices[self.linears[id.0].matrix.0];
        (matrix.rows, matrix.cols)
    }
}
