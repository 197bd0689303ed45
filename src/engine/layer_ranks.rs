//! The transport between the ranks that share layers.

use std::rc::Rc;

use crate::{
    dist::{ProcessGroup, ReduceOp},
    error::Result,
    tensor::Tensor,
    tensor_parallel::LayerRanks,
};

/// A group of ranks that share layers.
pub(super) struct TensorGroup(pub(super) Rc<ProcessGroup>);

impl LayerRanks for TensorGroup {
    fn place(&self) -> (i64, i64) {
        (self.0.rank() as i64, self.0.world_size() as i64)
    }

    fn sum(&self, tensor: &Tensor) -> Result<()> {
        self.0.all_reduce(tensor, ReduceOp::Sum)
    }

    fn sum_parts(&self, parts: &Tensor) -> Result<Tensor> {
        let part = Tensor::f_empty(&parts.size()[1..], (parts.kind(), parts.device()))?;
        self.0.reduce_scatter(&part, parts, ReduceOp::Sum)?;
        Ok(part)
    }

    fn gather(&self, part: &Tensor) -> Result<Vec<Tensor>> {
        let here = part.f_to_device(self.0.device())?.f_contiguous()?;
        let shape = [&[self.0.world_size() as i64], &here.size()[..]].concat();
        let all = Tensor::f_empty(&shape[..], (here.kind(), self.0.device()))?;
        self.0.all_gather_into(&all, &here)?;
        Ok(all.f_unbind(0)?)
    }
}
