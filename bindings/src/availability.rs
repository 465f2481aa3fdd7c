//! Whether a model can run here, asked before anything is loaded.

use calora::engine::Engine;

use crate::config::EngineConfig;
use crate::error::EngineError;

/// Why a model cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, uniffi::Enum)]
pub enum UnavailableReason {
    /// A file of the model is missing: download it.
    ModelMissing,
    /// A file of the model is damaged: download it again.
    ModelDamaged,
    /// The model asks for something this version does not compute.
    ModelUnsupported,
    /// A GPU was asked for and none is usable.
    NoDevice,
    /// It would take more memory than there is.
    NotEnoughMemory,
    /// An option of the configuration cannot work.
    InvalidOption,
    /// Something else; the detail says what.
    Other,
}

/// Whether a model can run here.
#[derive(Clone, Debug, PartialEq, uniffi::Enum)]
pub enum Availability {
    /// It can, as far as headers and device tell.
    Available {
        /// Bytes of its weights.
        weight_bytes: u64,
        /// The device that would compute.
        device: String,
    },
    /// It cannot.
    Unavailable {
        /// Why, for programs.
        reason: UnavailableReason,
        /// Why, for people.
        detail: String,
    },
}

impl From<EngineError> for Availability {
    fn from(error: EngineError) -> Self {
        let reason = match &error {
            EngineError::FileNotFound { .. } => UnavailableReason::ModelMissing,
            EngineError::InvalidFile { .. } => UnavailableReason::ModelDamaged,
            EngineError::Unsupported { .. } => UnavailableReason::ModelUnsupported,
            EngineError::DeviceUnavailable { .. } => UnavailableReason::NoDevice,
            EngineError::DoesNotFit { .. } => UnavailableReason::NotEnoughMemory,
            EngineError::InvalidOption { .. } => UnavailableReason::InvalidOption,
            _ => UnavailableReason::Other,
        };
        Self::Unavailable { reason, detail: error.to_string() }
    }
}

/// Whether this configuration can be loaded: headers are read and devices asked, no weight is touched.
#[uniffi::export]
pub fn availability(config: EngineConfig) -> Availability {
    match Engine::check(&config.model, &config.options()) {
        Ok(found) => Availability::Available { weight_bytes: found.weight_bytes, device: found.plan.device },
        Err(error) => EngineError::from(error).into(),
    }
}
