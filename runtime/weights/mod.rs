//! Model files: memory-mapped tensors, matrices in every stored form, and the folder that holds them.
//!
//! Invariant: nothing here copies a weight; devices read [`Tensor`] bytes from the map while they place them.

pub mod file;
mod header;
pub mod matrix;
pub(crate) mod read;
pub mod tensor;
pub(crate) mod write;

pub use file::SafetensorsFile;
pub use matrix::{Matrix, Storage};
pub(crate) use read::read_json;
pub use tensor::{DType, Tensor};
pub(crate) use write::write_atomically;

/// The content ids of a model folder, as far as it records or can compute them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseIds {
    /// Of the uncompressed weights.
    pub source: Option<String>,
    /// Of the compressed weights; none for an uncompressed folder.
    pub compressed: Option<String>,
}
