//! Model files: memory-mapped tensors, matrices in every stored form, and the folder that holds them.
//!
//! Invariant: nothing here copies a weight unless asked to ([`WeightAccess`]); devices read [`Tensor`] bytes from the map
//! while they place them. Adapters are copied when they become resident: [`Tensor::copied`].

mod cache;
mod canonical;
pub(crate) mod checked;
pub mod file;
pub mod folder;
mod header;
pub mod id;
mod mapped;
pub mod matrix;
pub mod private;
pub(crate) mod read;
pub(crate) mod room;
pub mod scheme;
pub mod shards;
pub(crate) mod stamp;
pub mod tensor;
pub(crate) mod write;

pub(crate) use checked::{read_checked, write_checked};
pub use file::SafetensorsFile;
pub use folder::{ModelFolder, WeightAccess};
pub use id::BaseIds;
pub use matrix::{Matrix, Storage};
pub use private::PrivateBytes;
pub(crate) use read::read_json;
pub use scheme::{ModuleTarget, QuantConfig};
pub use shards::Shards;
pub(crate) use shards::is_plain_name;
pub(crate) use stamp::Stamp;
pub(crate) use tensor::Backing;
pub use tensor::{DType, Tensor};
pub(crate) use write::Staged;
pub use write::write_atomically;
