//! A micro batch between its forward and its backward pass.

use super::{pipe::BatchShape, stage::Activations};
use crate::{data::BatchRows, tensor::Tensor};

/// A forward pass that waits for its backward pass.
pub(super) struct Pending {
    /// The mean loss; on a stage that is not the last, nothing.
    pub(super) loss: Tensor,
    pub(super) activations: Activations,
    /// On the last stage.
    pub(super) loss_sum: Option<Tensor>,
    pub(super) tokens: i64,
    pub(super) rows: BatchRows,
    pub(super) shape: BatchShape,
}
