//! How much memory a model is going to take, what the system has left, and how much of it is given back: plain data.
//!
//! Invariant: sums saturate, so that a size from a hostile file is a large number and never a small one.

/// What is done when a model does not fit the memory that there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MemoryPolicy {
    /// Loading fails with the numbers.
    #[default]
    Refuse,
    /// A smaller context, down to [`LEAST_CONTEXT`] positions; then a smaller budget for beginnings of conversations, down
    /// to none; then a smaller one for adapters, down to [`LEAST_ADAPTERS`] bytes. Fails only where that does not fit.
    Shrink,
}

/// Positions below which [`MemoryPolicy::Shrink`] does not go, unless fewer were asked for.
pub const LEAST_CONTEXT: usize = 512;

/// Bytes of the adapter budget below which [`MemoryPolicy::Shrink`] does not go, unless fewer were asked for.
pub const LEAST_ADAPTERS: u64 = 4 << 20;

/// How much memory an engine may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Bytes for everything that [`MemoryPlan`] lists. By default what the system says is available, where it says so (Linux
    /// and Android) and where weights lie in that memory (all devices but discrete GPUs); else nothing is checked.
    pub budget: Option<u64>,
    /// What is done when that is not enough.
    pub policy: MemoryPolicy,
    /// Sessions that are going to be open at once; by default 1.
    pub sessions: Option<usize>,
}

/// Bytes that an engine takes at most, known before anything is placed on its device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryPlan {
    /// `cpu` or `gpu`.
    pub kind: &'static str,
    /// The device's name.
    pub device: String,
    /// Positions of a session's KV cache.
    pub context_size: usize,
    /// Sessions planned for.
    pub sessions: usize,
    /// Base weights as the device holds them; on the CPU these are pages of the files, unless they are copied.
    pub weights: u64,
    /// Files read into private memory beside what the device holds: only with [`WeightAccess::Copied`] on a GPU.
    ///
    /// [`WeightAccess::Copied`]: crate::weights::WeightAccess::Copied
    pub copies: u64,
    /// KV caches of all planned sessions.
    pub caches: u64,
    /// Resident adapters: their budget.
    pub adapters: u64,
    /// Beginnings of conversations: their budget.
    pub prefixes: u64,
    /// Working memory. Work that wants all logits of a text (likelihoods) takes up to [`LOGIT_BYTES`] more, twice on a GPU.
    pub scratch: u64,
    /// Whether the weights are pages of mapped files, which the system may drop and read again.
    pub mapped: bool,
    /// What all of it must fit in; `None` where that is not known.
    pub available: Option<u64>,
    /// Positions that one buffer of this device holds; `None` where there is no such limit.
    pub largest_context: Option<usize>,
}

/// Bytes of logits that are computed at once where all of a text are wanted.
pub const LOGIT_BYTES: u64 = 16 << 20;

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> u64 {
        let parts = [self.copies, self.caches, self.adapters, self.prefixes, self.scratch];
        parts.iter().fold(self.weights, |sum, part| sum.saturating_add(*part))
    }

    /// All of it that the system cannot take back.
    pub fn private(&self) -> u64 {
        self.total() - if self.mapped { self.weights } else { 0 }
    }

    /// Whether it fits what is available and what one buffer holds.
    pub fn fits(&self) -> bool {
        let total = self.total();
        total < u64::MAX
            && self.available.is_none_or(|available| total <= available)
            && self.largest_context.is_none_or(|largest| self.context_size <= largest)
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes (weights {}", self.total(), self.weights)?;
        if self.copies > 0 {
            write!(f, ", their files {}", self.copies)?;
        }
        write!(
            f,
            ", caches {} for {} x {} tokens, adapters {}, beginnings {}, working memory {})",
            self.caches, self.sessions, self.context_size, self.adapters, self.prefixes, self.scratch
        )
    }
}

/// How urgently memory is wanted back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrimLevel {
    /// Adapters that nothing uses go, and beginnings of conversations that were put aside: what comes back by reading or
    /// computing it once.
    Moderate,
    /// KV caches of sessions that are not responding go too, working memory that is not needed at once, and the pages of
    /// mapped weights: the next response computes its conversation anew and reads the weights again.
    Critical,
}

/// Bytes that trimming gave back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrimReport {
    /// Of adapters.
    pub adapters: u64,
    /// Lists of adapters that left the device.
    pub evicted: usize,
    /// Of beginnings of conversations.
    pub prefixes: u64,
    /// Of KV caches.
    pub caches: u64,
    /// Sessions whose cache went.
    pub dropped_caches: usize,
    /// Of working memory.
    pub scratch: u64,
    /// Of mapped weights that this process no longer holds pages of; the system may keep them for the next use.
    pub mapped: u64,
}

impl TrimReport {
    /// Everything but mapped pages, which the system could have taken by itself.
    pub fn freed(&self) -> u64 {
        self.adapters + self.prefixes + self.caches + self.scratch
    }
}

/// Bytes that the system could give to processes, as Linux and Android estimate it.
pub(crate) fn available() -> Option<u64> {
    field("/proc/meminfo", "MemAvailable:")
}

/// A figure of this process in `/proc/self/status`, in bytes; Linux and Android have it.
pub(crate) fn of_process(name: &str) -> Option<u64> {
    field("/proc/self/status", name)
}

/// A line of `kB` in one of the system's files, in bytes.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
}
