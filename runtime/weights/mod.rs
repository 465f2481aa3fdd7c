//! Model files: memory-mapped tensors, matrices in every stored form, and the folder that holds them.
//!
//! Invariant: nothing here copies a weight; devices read [`Tensor`] bytes from the map while they place them.

pub mod file;
mod header;
pub mod matrix;
pub(crate) mod read;
pub mod tensor;

pub use file::SafetensorsFile;
pub use matrix::{Matrix, Storage};
pub use tensor::{DType, Tensor};
