//! The operations that reduce the values of all ranks.

use crate::{
    bridge::dist::RedOpType,
    error::{Code, Result},
    tensor::Tensor,
};

/// How values of all ranks become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The sum divided by the world size; for floating-point tensors.
    Avg,
    /// The greatest.
    Max,
    /// The least.
    Min,
}

impl From<ReduceOp> for RedOpType {
    fn from(op: ReduceOp) -> Self {
        match op {
            ReduceOp::Sum => Self::Sum,
            ReduceOp::Avg => Self::Avg,
            ReduceOp::Max => Self::Max,
            ReduceOp::Min => Self::Min,
        }
    }
}

/// Refuses an operation that a tensor of this dtype does not have.
pub(super) fn check_reduction(operation: &str, op: ReduceOp, tensor: &Tensor) -> Result<()> {
    if op == ReduceOp::Avg && !tensor.is_floating_point() {
        bail!(
            Code::Shape,
            "{operation}: an average needs a floating-point tensor, found {:?}",
            tensor.kind()
        );
    }
    Ok(())
}
