//! Facts about model, device and memory.

/// What the loaded model is.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct ModelInfo {
    /// Its folder.
    pub folder: String,
    /// `model_type` of its configuration.
    pub architecture: String,
    /// How the weights are stored, for people: `int4 g32`, `bf16`.
    pub scheme: String,
    /// Layers.
    pub layers: u32,
    /// Channels of the residual stream.
    pub hidden_size: u32,
    /// Tokens of the vocabulary.
    pub vocabulary_size: u32,
    /// Tokens that a session holds.
    pub context_size: u32,
    /// Tokens that the model was made for.
    pub max_context_size: u32,
    /// Whether prompts are messages of a conversation; else they are plain text to be continued.
    pub has_chat_template: bool,
}

impl From<&calora::engine::ModelInfo> for ModelInfo {
    fn from(info: &calora::engine::ModelInfo) -> Self {
        let shape = &info.shape;
        Self {
            folder: info.folder.display().to_string(),
            architecture: info.architecture.clone(),
            scheme: info.scheme.clone(),
            layers: shape.layers as u32,
            hidden_size: shape.hidden as u32,
            vocabulary_size: shape.vocab as u32,
            context_size: info.context_size as u32,
            max_context_size: shape.context as u32,
            has_chat_template: info.has_chat_template,
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum DeviceKind {
    /// A GPU through Vulkan, Metal or OpenGL ES.
    Gpu,
    /// The processor's own cores.
    Cpu,
}

/// The device, for diagnostics.
#[derive(Clone, Debug, PartialEq, uniffi::Record)]
pub struct DeviceInfo {
    /// GPU or CPU.
    pub kind: DeviceKind,
    /// The GPU's or processor's name.
    pub name: String,
    /// Driver, backend, instruction sets and capabilities in use.
    pub detail: String,
    /// `f32` or `int8`.
    pub activations: String,
}

impl From<&calora::device::DeviceInfo> for DeviceInfo {
    fn from(info: &calora::device::DeviceInfo) -> Self {
        Self {
            kind: if info.kind == "gpu" { DeviceKind::Gpu } else { DeviceKind::Cpu },
            name: info.name.clone(),
            detail: info.detail.clone(),
            activations: format!("{:?}", info.activations).to_lowercase(),
        }
    }
}

/// Bytes that the engine holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Record)]
pub struct MemoryUse {
    /// Base weights; on the CPU these are mapped pages, which the system may drop and read again.
    pub weight_bytes: u64,
    /// KV caches of all sessions.
    pub cache_bytes: u64,
    /// Resident adapters.
    pub adapter_bytes: u64,
    /// Working memory.
    pub scratch_bytes: u64,
    /// Beginnings of conversations that were put aside, in ordinary memory.
    pub prefix_bytes: u64,
    /// Encrypted adapters that are open, decrypted.
    pub decrypted_bytes: u64,
}

impl MemoryUse {
    pub(crate) fn of(engine: &calora::engine::Engine) -> Self {
        let m = engine.memory();
        Self {
            prefix_bytes: engine.prefix_bytes(),
            weight_bytes: m.weights,
            cache_bytes: m.caches,
            adapter_bytes: m.tails,
            scratch_bytes: m.scratch,
            decrypted_bytes: engine.decrypted_bytes(),
        }
    }
}

/// Adapters that are on the device together.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct ResidentAdapters {
    /// Their names.
    pub names: Vec<String>,
    /// Bytes of their branches in their files, close to what they take on the device.
    pub bytes: u64,
    /// Whether a session uses them, or they were preloaded; else the budget keeps them.
    pub in_use: bool,
}

/// What of the adapters is on the device.
#[derive(Clone, Debug, PartialEq, Eq, uniffi::Record)]
pub struct Residency {
    /// Every list of adapters.
    pub adapters: Vec<ResidentAdapters>,
    /// Bytes that may stay after their last use.
    pub budget_bytes: u64,
    /// Bytes that are kept within the budget, in use or not.
    pub used_bytes: u64,
}

impl From<calora::engine::ResidencyReport> for Residency {
    fn from(report: calora::engine::ResidencyReport) -> Self {
        let list = |list: &calora::engine::ResidentList| ResidentAdapters {
            names: list.adapters.iter().map(|adapter| adapter.name().to_owned()).collect(),
            bytes: list.bytes,
            in_use: list.holders > 0,
        };
        Self {
            adapters: report.lists.iter().map(list).collect(),
            budget_bytes: report.budget_bytes,
            used_bytes: report.used_bytes,
        }
    }
}

/// What the engine has computed since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, uniffi::Record)]
pub struct Statistics {
    /// Passes of the device.
    pub passes: u64,
    /// Tokens in them.
    pub tokens: u64,
}
