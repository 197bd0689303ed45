//! Block-sparse attention: each block of queries sees the blocks of keys that a layout names.
//!
//! A layout (`layout`) is cut into dense pieces (`pieces`), which libtorch's flash kernel computes, and whose
//! results are merged by their log-sum-exp (`operation`).

mod attention;
#[cfg(test)]
mod golden;
mod layout;
mod operation;
mod pieces;

pub use attention::{BlockSparse, Extent, Hidden};
