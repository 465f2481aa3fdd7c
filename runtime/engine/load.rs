//! From a model folder to an engine: which device, which activations, which files.

/// Which device computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceChoice {
    /// The GPU where there is a real one, else the CPU; never a software GPU.
    #[default]
    Auto,
    /// A GPU, even a software one.
    Gpu,
    /// The CPU.
    Cpu,
}

/// Precision of the activations that meet compressed weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationChoice {
    /// Int8 where weights are compressed, else float32.
    #[default]
    Auto,
    /// Float32: the reference mode.
    F32,
    /// Int8: the fast mode.
    Int8,
}

/// How a model folder is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineOptions {
    /// Which device.
    pub device: DeviceChoice,
    /// Which precision.
    pub activations: ActivationChoice,
    /// Positions of a session's cache; by default the model's, at most [`super::DEFAULT_CONTEXT`].
    pub context_size: Option<usize>,
    /// Threads of the CPU device; by default one a core.
    pub threads: Option<usize>,
    /// Tokens of one prefill pass; by default [`super::DEFAULT_PREFILL_CHUNK`].
    pub prefill_chunk: Option<usize>,
}
