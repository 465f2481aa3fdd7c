//! What can go wrong, as an app sees it: few cases, each with what a person or a program needs to act.

use crate::memory::MemoryPlan;

/// Errors of the engine. Kotlin names it `EngineException`.
#[derive(Clone, Debug, PartialEq, thiserror::Error, uniffi::Error)]
pub enum EngineError {
    /// A file or folder is not there.
    #[error("{path} is missing: {reason}")]
    FileNotFound {
        /// The file or folder.
        path: String,
        /// What was expected and what to do.
        reason: String,
    },
    /// A file could not be read.
    #[error("{path} cannot be read: {reason}")]
    FileUnreadable {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// A file's content is damaged, truncated, or not what its name says. Downloading it again may help.
    #[error("{path} is damaged or not of the expected format: {reason}")]
    InvalidFile {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A model or adapter asks for something that calora does not compute.
    #[error("{path}: {feature} is not supported: {reason}")]
    Unsupported {
        /// The file.
        path: String,
        /// What it asks for.
        feature: String,
        /// Why, and what is supported.
        reason: String,
    },
    /// The adapter was made for another base model.
    #[error("adapter {adapter} was made for base {expected_base}, but this model is {actual_base}")]
    AdapterMismatch {
        /// The adapter's name.
        adapter: String,
        /// The base id in the adapter.
        expected_base: String,
        /// The loaded model's id.
        actual_base: String,
    },
    /// The adapter would change nothing in this model.
    #[error("adapter {adapter} touches nothing in this model: {reason}")]
    AdapterTouchesNothing {
        /// The adapter's name.
        adapter: String,
        /// Which modules it names and which the model has.
        reason: String,
    },
    /// The adapter is encrypted, and no key or another one was given.
    #[error("{path} is encrypted: {reason}")]
    AdapterLocked {
        /// The file.
        path: String,
        /// What was wrong with the key.
        reason: String,
    },
    /// The adapter has no signature of a trusted signer, or was changed after it was signed.
    #[error("{path} is not trusted: {reason}")]
    AdapterUntrusted {
        /// The file or folder.
        path: String,
        /// What is wrong with the signature.
        reason: String,
    },
    /// The adapter fits by its shapes and does nothing, or something else than it was made for.
    #[error("adapter {adapter} does not act as it should: {reason}")]
    AdapterUnproven {
        /// The adapter's name.
        adapter: String,
        /// What its probe showed.
        reason: String,
    },
    /// A file that was open was truncated or written to in place. Open it again, and replace files by renaming.
    #[error("{path} changed after it was opened")]
    FileChanged {
        /// The file.
        path: String,
    },
    /// An adapter was to be replaced or removed in another state than it is in: somebody else was faster.
    #[error("adapter {adapter} is not at the expected version")]
    VersionConflict {
        /// The adapter's name in its library.
        adapter: String,
        /// The version that was expected; absent: none.
        expected: Option<String>,
        /// The version that is there; absent: none.
        actual: Option<String>,
    },
    /// Prompt and conversation do not fit the context.
    #[error("the context holds {context_size} tokens, {token_count} are needed")]
    ContextSizeExceeded {
        /// Tokens the session can hold.
        context_size: u64,
        /// Tokens needed, the conversation so far included.
        token_count: u64,
    },
    /// An option has a value that cannot work.
    #[error("{option} = {value}: {reason}")]
    InvalidOption {
        /// The option's name.
        option: String,
        /// The value given.
        value: String,
        /// What is accepted.
        reason: String,
    },
    /// No device of the wanted kind can be used.
    #[error("no usable {wanted} device: {reason}")]
    DeviceUnavailable {
        /// `gpu` or `cpu`.
        wanted: String,
        /// Why not.
        reason: String,
    },
    /// The system took the GPU away over and over within one request. The engine makes it again by itself; ask again, or
    /// load with `fallback_to_cpu`.
    #[error("the GPU was lost: {reason}")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// Memory ran out. Close sessions, lower the context size or the adapter budget, or take a smaller model.
    #[error("out of memory for {what} ({needed_bytes} bytes): {reason}")]
    OutOfMemory {
        /// What was to be placed.
        what: String,
        /// Its size.
        needed_bytes: u64,
        /// What the device said.
        reason: String,
    },
    /// The model would take more memory than there is; nothing was loaded. Load with the context size that the plan says fits,
    /// with the policy `Shrink`, or a smaller model.
    #[error("{reason}")]
    DoesNotFit {
        /// What it would take, and what there is.
        plan: Box<MemoryPlan>,
        /// The same for people.
        reason: String,
    },
    /// The session is answering already. One response at a time; open another session for another.
    #[error("the session is answering another request")]
    Busy,
    /// The engine, session or adapter was closed.
    #[error("{what} is closed")]
    Closed {
        /// `engine`, `session` or `adapter`.
        what: String,
    },
    /// The request was cancelled and the session is as it was. The Kotlin and Swift APIs throw their platform's own
    /// cancellation instead.
    #[error("cancelled")]
    Cancelled,
    /// A defect of calora or of a driver; please report it with the diagnostics.
    #[error("internal error: {reason}")]
    Internal {
        /// What happened.
        reason: String,
    },
}

/// The result type of this crate.
pub(crate) type Result<T, E = EngineError> = std::result::Result<T, E>;

impl EngineError {
    pub(crate) fn closed(what: &str) -> Self {
        Self::Closed { what: what.into() }
    }

    pub(crate) fn internal(reason: impl std::fmt::Display) -> Self {
        Self::Internal { reason: reason.to_string() }
    }
}

impl From<calora::Error> for EngineError {
    fn from(error: calora::Error) -> Self {
        use calora::Error;
        let said = error.to_string();
        match error {
            Error::Io { path, source } => {
                let (path, reason) = (path.display().to_string(), source.to_string());
                match source.kind() {
                    std::io::ErrorKind::NotFound => Self::FileNotFound { path, reason },
                    _ => Self::FileUnreadable { path, reason },
                }
            }
            Error::MissingFile { folder, file, help } => {
                Self::FileNotFound { path: folder.join(file).display().to_string(), reason: help }
            }
            Error::LfsPointer { path, .. } => {
                let reason = "it is a Git LFS pointer, not the file itself".into();
                Self::InvalidFile { path: path.display().to_string(), reason }
            }
            Error::Malformed { path, reason } | Error::Tokenizer { path, reason } => {
                Self::InvalidFile { path: path.display().to_string(), reason }
            }
            Error::Tensor { path, tensor, reason } => {
                let reason = format!("tensor {tensor}: {reason}");
                Self::InvalidFile { path: path.display().to_string(), reason }
            }
            Error::UnsupportedConfig { path, field, value, reason } => {
                let feature = format!("{field} = {value}");
                Self::Unsupported { path: path.display().to_string(), feature, reason }
            }
            Error::UnsupportedAdapter { path, feature, help } => {
                Self::Unsupported { path: path.display().to_string(), feature, reason: help }
            }
            Error::AdapterMismatch { adapter, expected, actual } => {
                Self::AdapterMismatch { adapter, expected_base: expected, actual_base: actual }
            }
            Error::AdapterTouchesNothing { adapter, reason } => {
                Self::AdapterTouchesNothing { adapter, reason }
            }
            Error::Locked { path, reason } => {
                Self::AdapterLocked { path: path.display().to_string(), reason }
            }
            Error::Untrusted { path, reason } => {
                Self::AdapterUntrusted { path: path.display().to_string(), reason }
            }
            Error::CanaryFailed { adapter, reason } => Self::AdapterUnproven { adapter, reason },
            Error::FileChanged { path } => Self::FileChanged { path: path.display().to_string() },
            Error::VersionConflict { adapter, expected, actual } => {
                Self::VersionConflict { adapter, expected, actual }
            }
            Error::TokenOutOfRange { id, vocab } => Self::InvalidOption {
                option: "token".into(),
                value: id.to_string(),
                reason: format!("the vocabulary has {vocab} tokens"),
            },
            Error::ContextFull { needed, available } => {
                Self::ContextSizeExceeded { context_size: available as u64, token_count: needed as u64 }
            }
            Error::EmptyPrompt => Self::InvalidOption {
                option: "prompt".into(),
                value: "\"\"".into(),
                reason: "give at least one token".into(),
            },
            Error::InvalidOption { option, value, reason } => Self::InvalidOption { option, value, reason },
            Error::NoDevice { wanted, reason } => Self::DeviceUnavailable { wanted, reason },
            Error::OutOfMemory { what, bytes, reason } => {
                Self::OutOfMemory { what, needed_bytes: bytes, reason }
            }
            Error::DoesNotFit { plan, fits, least } => {
                Self::DoesNotFit { plan: Box::new(MemoryPlan::new(&plan, Some((fits, least)))), reason: said }
            }
            Error::DeviceLost { reason } => Self::DeviceLost { reason },
            Error::Cancelled => Self::Cancelled,
            // Gpu, ChatTemplate, NotFinite, and what later versions add.
            _ => Self::Internal { reason: said },
        }
    }
}

/// A foreign callback that threw: its request fails, nothing panics.
impl From<uniffi::UnexpectedUniFFICallbackError> for EngineError {
    fn from(error: uniffi::UnexpectedUniFFICallbackError) -> Self {
        Self::Internal { reason: format!("the app's callback threw: {}", error.reason) }
    }
}
