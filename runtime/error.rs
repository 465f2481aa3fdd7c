//! One error type for the whole engine: every case carries what a person needs to act on it.
//!
//! Invariant: library code returns these; it never panics, aborts or prints.

use std::path::{Path, PathBuf};

use crate::memory::MemoryPlan;

/// The engine's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or mapped.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A folder lacks a file that a model or an adapter needs.
    #[error("{folder}: there is no {file}; {help}", folder = folder.display())]
    MissingFile {
        /// The folder that was searched.
        folder: PathBuf,
        /// The file's name.
        file: String,
        /// What to do.
        help: String,
    },
    /// A Git LFS pointer stands where the file's content should be.
    #[error("{path} is a Git LFS pointer, not the file itself ({size} bytes); run `git lfs pull` in its repository", path = path.display())]
    LfsPointer {
        /// The pointer file.
        path: PathBuf,
        /// The size that the pointer announces.
        size: u64,
    },
    /// A file's content breaks its own format.
    #[error("{path} is damaged or not of the expected format: {reason}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// One tensor is missing, or has another shape, type or content than the configuration asks for.
    #[error("{path}: tensor {tensor}: {reason}", path = path.display())]
    Tensor {
        /// The file (or the folder, where no file has the tensor).
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A configuration field that would change the result is not supported.
    #[error("{path}: {field} = {value} is not supported: {reason}", path = path.display())]
    UnsupportedConfig {
        /// The configuration file.
        path: PathBuf,
        /// The field's name.
        field: String,
        /// Its value, as JSON.
        value: String,
        /// Why, and what is supported.
        reason: String,
    },
    /// An adapter uses something this engine does not apply; loading it in part would change its meaning.
    #[error("{path}: {feature} is not supported: {help}", path = path.display())]
    UnsupportedAdapter {
        /// The adapter's file or folder.
        path: PathBuf,
        /// What it asks for.
        feature: String,
        /// What to do.
        help: String,
    },
    /// The adapter was made for another base model.
    #[error("adapter {adapter} was made for base {expected}, but this model is {actual}")]
    AdapterMismatch {
        /// The adapter's name or path.
        adapter: String,
        /// The base id in the adapter.
        expected: String,
        /// The loaded model's id.
        actual: String,
    },
    /// The adapter touches no linear of this model.
    #[error("adapter {adapter} touches nothing in this model: {reason}")]
    AdapterTouchesNothing {
        /// The adapter's name or path.
        adapter: String,
        /// Which modules it names and which the model has.
        reason: String,
    },
    /// An adapter is encrypted, and no key or another one was given.
    #[error("{path} is encrypted: {reason}", path = path.display())]
    Locked {
        /// The encrypted file.
        path: PathBuf,
        /// What was wrong with the key.
        reason: String,
    },
    /// A signature was asked for, and the adapter has none, a broken one, or one of somebody who is not trusted.
    #[error("{path} is not trusted: {reason}", path = path.display())]
    Untrusted {
        /// The adapter's file or folder.
        path: PathBuf,
        /// What is wrong with the signature.
        reason: String,
    },
    /// An adapter fits this model by its shapes but does not do what it was made for.
    #[error("adapter {adapter} does not act as it should: {reason}")]
    CanaryFailed {
        /// The adapter's name.
        adapter: String,
        /// What the probe showed.
        reason: String,
    },
    /// A file that was open was truncated or written to in place. What is resident already goes on.
    #[error("{path} changed after it was opened; open it again, and replace files by renaming", path = path.display())]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// An adapter was to be replaced in another state than it is in: somebody else was faster.
    #[error(
        "adapter {adapter} is at version {actual}, not {expected}; look at it again and decide anew",
        actual = actual.as_deref().unwrap_or("none (it is not there)"),
        expected = expected.as_deref().unwrap_or("none (it was not to be there)")
    )]
    VersionConflict {
        /// The adapter's name in its library.
        adapter: String,
        /// The version that the caller knew; `None`: that there is none.
        expected: Option<String>,
        /// The version in the folder; `None`: there is none.
        actual: Option<String>,
    },
    /// A token id is not in the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab} tokens")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// The vocabulary's size.
        vocab: usize,
    },
    /// The prompt does not fit the context.
    #[error(
        "the context holds {available} tokens, {needed} are needed; shorten the prompt or load with a larger context"
    )]
    ContextFull {
        /// Tokens needed, transcript included.
        needed: usize,
        /// Tokens the session's cache holds.
        available: usize,
    },
    /// There is nothing to compute.
    #[error("the prompt is empty; give at least one token")]
    EmptyPrompt,
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
    NoDevice {
        /// `gpu` or `cpu`.
        wanted: String,
        /// Why not, and what to install.
        reason: String,
    },
    /// Memory ran out while something was placed on the device.
    #[error("out of memory for {what} ({bytes} bytes): {reason}")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        bytes: u64,
        /// What the device said.
        reason: String,
    },
    /// The model would take more memory than there is; nothing was placed yet.
    #[error("the model needs {plan} on {device}, {}; {}", limit(plan), way_out(*fits, *least), device = plan.device)]
    DoesNotFit {
        /// What it would take, and what there is.
        plan: Box<MemoryPlan>,
        /// The largest context with which everything else fits as asked for; `None` where there is none.
        fits: Option<usize>,
        /// Bytes of the smallest plan that [`MemoryPolicy::Shrink`](crate::memory::MemoryPolicy::Shrink) would settle for.
        least: u64,
    },
    /// The system took the device away, and going on with it failed: it was lost over and over within one request, or the
    /// engine was made of parts that cannot open it again. The next request tries once more; loading with
    /// `fallback_to_cpu` goes on without it.
    #[error("the device was lost and could not go on: {reason}; ask again, or load with the CPU as fallback")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// The GPU refused work, also after it was opened again; this is a defect of calora or of the driver.
    #[error("the GPU refused {what}: {reason}")]
    Gpu {
        /// What was being done.
        what: String,
        /// What the validation said.
        reason: String,
    },
    /// The tokenizer could not be loaded or could not encode a text.
    #[error("{path}: tokenizer: {reason}", path = path.display())]
    Tokenizer {
        /// The tokenizer file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The chat template failed on this conversation.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// What the template engine said.
        reason: String,
    },
    /// A computation gave no finite number, which only damaged weights or a defect do.
    #[error("{what} are not finite numbers; the model or an adapter is damaged")]
    NotFinite {
        /// What was computed.
        what: String,
    },
    /// The caller cancelled; the session is as it was before the request.
    #[error("cancelled")]
    Cancelled,
}

/// Which limit a plan breaks.
fn limit(plan: &MemoryPlan) -> String {
    match (plan.available, plan.largest_context) {
        (_, Some(largest)) if plan.context_size > largest => {
            format!("and one of its buffers holds {largest} tokens")
        }
        (Some(available), _) => format!("and {available} are available"),
        (None, _) => "more than this machine can address".to_owned(),
    }
}

/// What would fit.
fn way_out(fits: Option<usize>, least: u64) -> String {
    match fits {
        Some(context) => format!("a context of {context} tokens fits"),
        None => format!("no context fits; with the smallest context and budgets it is {least} bytes"),
    }
}

impl Error {
    /// An I/O error with its file.
    pub(crate) fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// A file that breaks its format.
    pub(crate) fn malformed(path: impl AsRef<Path>, reason: impl std::fmt::Display) -> Self {
        Self::Malformed { path: path.as_ref().to_owned(), reason: reason.to_string() }
    }

    /// A tensor that does not fit.
    pub(crate) fn tensor(path: impl AsRef<Path>, tensor: &str, reason: impl std::fmt::Display) -> Self {
        Self::Tensor { path: path.as_ref().to_owned(), tensor: tensor.to_owned(), reason: reason.to_string() }
    }

    /// An option with an impossible value.
    pub(crate) fn option(
        option: &str,
        value: impl std::fmt::Display,
        reason: impl std::fmt::Display,
    ) -> Self {
        Self::InvalidOption {
            option: option.to_owned(),
            value: value.to_string(),
            reason: reason.to_string(),
        }
    }
}
