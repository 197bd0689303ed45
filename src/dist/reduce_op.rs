//! The operations that reduce the values of all ranks.

pub use crate::bridge::dist::ReduceOp;
use crate::{
    error::{Code, Result},
    tensor::{Tensor, dtype_name},
};

/// Refuses an operation that a tensor of this dtype does not have.
pub(super) fn check_reduction(operation: &str, op: ReduceOp, tensor: &Tensor) -> Result<()> {
    if op == ReduceOp::Avg && !tensor.is_floating_point() {
        bail!(
            Code::Shape,
            "{operation}: an average needs a floating-point tensor, found {}",
            dtype_name(tensor.kind())
        );
    }
    Ok(())
}
