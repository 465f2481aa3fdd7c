//! Workstation tools of calora: rows, evaluation, compression, packing.

pub mod rows;
