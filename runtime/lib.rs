//! calora runs one compressed LLM on a phone and switches tasks in an instant.
//!
//! Every linear computes `y = Q(W) x + s_l · B (A x) + s_r · U gelu(D x)`: a compressed weight that all tasks share, and
//! two small branches that belong to a task: an inherited LoRA and a recovery module (CA-LoRA, arXiv 2307.07705).

pub mod adapter;
pub mod arch;
pub mod bench;
pub mod cpu;
pub mod device;
pub mod engine;
pub mod error;
pub mod gpu;
mod kernels;
pub mod library;
pub mod memory;
pub mod quant;
pub mod router;
pub mod session;
pub mod text;
pub mod weights;

pub use error::{Error, Result};

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
