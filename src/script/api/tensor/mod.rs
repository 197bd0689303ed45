//! `Tensor` in scripts: a handle to one of libtorch's, with PyTorch's names and rules.
//!
//! Copies of a handle are the same tensor, and so are views, as in PyTorch. Every mistake that
//! libtorch would refuse is looked for first (`check.rs`).

pub mod attributes;
pub mod autograd;
pub(crate) mod check;
pub mod create;
pub mod handle;
pub mod index;
pub mod math;
pub mod read;
pub mod reduce;
pub mod shape;
pub(crate) mod show;

pub use self::{attributes::api, handle::Handle};
