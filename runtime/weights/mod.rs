//! Model files: memory-mapped tensors, matrices in every stored form, and the folder that holds them.
//!
//! Invariant: nothing here copies a weight; devices read [`Tensor`] bytes from the map while they place them.

mod cache;
mod canonical;
pub mod file;
pub mod folder;
mod header;
pub mod id;
pub mod matrix;
pub mod private;
pub(crate) mod read;
pub mod scheme;
pub mod shards;
pub mod tensor;
pub(crate) mod write;

pub use file::SafetensorsFile;
pub use folder::ModelFolder;
pub use id::BaseIds;
pub use matrix::{Matrix, Storage};
pub use private::PrivateBytes;
pub(crate) use read::read_json;
pub use scheme::{ModuleTarget, QuantConfig};
pub use shards::Shards;
pub use tensor::{DType, Tensor};
pub use write::write_atomically;
