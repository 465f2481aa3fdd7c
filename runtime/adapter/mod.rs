//! Task adapters: low-rank branches beside linears, from PEFT folders and task files.
//!
//! [`TaskAdapter::open`] reads headers only; [`TaskAdapter::bind`] checks that it belongs to a model and makes a
//! [`Tail`], which a device makes resident. Nothing here knows a device or touches a base weight.

pub mod branch;
pub mod canary;
pub mod coverage;
mod peft;
pub mod protect;
mod table;
mod targets;
mod task;
pub mod task_file;

pub use branch::{Branch, BranchKind, LowRank, Tail};
pub use canary::{Canary, CanaryReport, CanaryVerdict};
pub use coverage::{BaseCheck, Coverage};
pub use protect::{AdapterOptions, Protection, PublicKey, SecretKey, SigningKey};
pub(crate) use table::BoundTail;
pub use task::{AdapterInfo, TaskAdapter};
pub use task_file::{BranchStorage, replace_task_file, task_file_bytes, write_task_file};
