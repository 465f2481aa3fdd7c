//! Training of adapters on the CPU or any GPU (burn; cargo feature `train`): plain LoRAs and CA-LoRA.
//!
//! Reading order: `data` (rows to token ids) → `batch` (ids to tensors, without padding) → `frozen` (the base model's
//! weights) → `branches` (what is trained) → `forward` (the recipe's steps) → `loss` → `gradients` (block by block) → `memory` →
//! `optimizer` → `teacher` → `evaluate` → `run` (the loop) → `checkpoint` → `start` (where branches begin) → `export`,
//! and the two jobs, [`lora`] and [`adapt`].
//!
//! The method is CA-LoRA's (Zhao et al., COLM 2024, arXiv 2307.07705): the student is the compressed model with the
//! inherited LoRA and a recovery branch beside every linear; the teacher is the uncompressed model with the LoRA:
//!
//! ```text
//! loss = cross-entropy + λ · Σ (h_student - h_teacher)² / Σ h_teacher²      h: hidden states after the last norm
//! ```
//!
//! Only branches are trained. Weights of the base are constants, dequantized as they are needed.

pub mod adapt;
pub mod batch;
pub mod branches;
pub mod checkpoint;
pub mod data;
pub mod device;
pub mod evaluate;
pub mod export;
pub mod forward;
pub mod frozen;
pub mod gradients;
pub mod lora;
pub mod loss;
pub mod memory;
pub mod optimizer;
pub mod options;
pub mod report;
pub mod run;
pub mod setup;
pub mod start;
pub mod teacher;

pub use burn::tensor::DType;
