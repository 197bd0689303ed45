//! Block-sparse attention: each block of queries sees the blocks of keys that a layout names.
//!
//! A layout (`layout`) is cut into dense pieces (`pieces`), which libtorch's flash kernel computes, and whose
//! results are merged by their log-sum-exp (`operation`). With a trained bias the scores are written out, some
//! rows of blocks at a time (`by_distance`). A sliding window that is exact to the token is two
//! calls (`window`).

mod attention;
mod by_distance;
#[cfg(test)]
mod golden;
mod layout;
mod merge;
mod operation;
mod pieces;
mod window;

pub use attention::{BlockSparse, Extent, Hidden};
pub use by_distance::MOST_SCORES;
pub use window::{attend_window, window_density};
