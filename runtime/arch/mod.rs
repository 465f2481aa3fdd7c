//! Architectures as recipes: a configuration becomes a list of steps that any device can execute.
//!
//! Invariant: no device code and no arithmetic here; a recipe is plain data.

pub mod recipe;

pub use recipe::{
    Activation, Linear, LinearId, MatrixId, MatrixSpec, ModelShape, Output, Recipe, Rope, Slot, Step,
    VectorId, VectorSpec,
};
