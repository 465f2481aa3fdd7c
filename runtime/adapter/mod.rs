//! Task adapters: low-rank branches beside linears, from PEFT folders and task files.

pub mod branch;

pub use branch::{Branch, BranchKind, LowRank, Tail};
