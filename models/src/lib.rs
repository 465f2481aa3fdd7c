//! The workstation side of calora: compression, packing, evaluation. The program `calora` is a thin layer over it.

pub mod calibrate;
pub mod compress;
pub mod eval;
pub mod keys;
pub mod linalg;
pub mod pack;
pub mod plot;
pub mod prepare;
pub mod residual;
pub mod rows;
#[cfg(feature = "train")]
pub mod train;
