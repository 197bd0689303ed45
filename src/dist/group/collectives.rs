//! The collectives of a group, and the transfers between two ranks.
//!
//! Every rank calls the same collectives in the same order with the same shapes; what one rank can
//! see of that is checked here, the rest shows as a timeout. Each collective has a form that
//! returns when its result can be used and an `_async` one that returns a [`Work`].

use super::ProcessGroup;
use crate::{
    bridge::dist::Mode,
    dist::{
        Work,
        rank_state::{RECEIVE, SEND},
        reduce_op::{ReduceOp, check_reduction},
    },
    error::{Code, Result},
    tensor::{Tensor, device_name, dtype_name},
};

impl ProcessGroup {
    /// Reduces `tensor` over all ranks, in place: afterwards all ranks hold the same values.
    ///
    /// # Errors
    /// [`Code::Shape`] for a tensor that is not contiguous, not on the group's device, or not
    /// floating-point for [`ReduceOp::Avg`]; [`Code::Dist`] when another rank fails.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<()> {
        self.start_all_reduce(tensor, op, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::all_reduce`].
    pub fn all_reduce_async(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work> {
        self.start_all_reduce(tensor, op, Mode::Async)
    }

    /// Concatenates the `shard`s of all ranks into `out`, in the order of the ranks. `out` has
    /// `world_size` times the elements of `shard`; beyond that its shape is free.
    ///
    /// # Errors
    /// [`Code::Shape`] for tensors that do not fit together, are not contiguous, or are not on the
    /// group's device; [`Code::Dist`] when another rank fails.
    pub fn all_gather_into(&self, out: &Tensor, shard: &Tensor) -> Result<()> {
        self.start_all_gather(out, shard, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::all_gather_into`].
    pub fn all_gather_into_async(&self, out: &Tensor, shard: &Tensor) -> Result<Work> {
        self.start_all_gather(out, shard, Mode::Async)
    }

    /// Reduces `input` over all ranks and leaves in `shard` this rank's slice of the result, the
    /// `rank`-th of `world_size` equal ones. The content of `input` is then undefined.
    pub fn reduce_scatter(&self, shard: &Tensor, input: &Tensor, op: ReduceOp) -> Result<()> {
        self.start_reduce_scatter(shard, input, op, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::reduce_scatter`].
    pub fn reduce_scatter_async(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
    ) -> Result<Work> {
        self.start_reduce_scatter(shard, input, op, Mode::Async)
    }

    /// Copies `tensor` of rank `root` over `tensor` of every other rank.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        self.start_broadcast(tensor, root, Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::broadcast`].
    pub fn broadcast_async(&self, tensor: &Tensor, root: usize) -> Result<Work> {
        self.start_broadcast(tensor, root, Mode::Async)
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.start_barrier(Mode::Sync)?.wait()
    }

    /// Starts [`ProcessGroup::barrier`].
    pub fn barrier_async(&self) -> Result<Work> {
        self.start_barrier(Mode::Async)
    }

    /// Starts to send `tensor` to the second of two ranks, of which this is the first. It may be
    /// written again when the work is done.
    pub fn send(&self, tensor: &Tensor) -> Result<Work> {
        let work = self.start_transfer(SEND, tensor, 0, Mode::Async)?;
        self.count(|traffic| traffic.send.add_copy(tensor, self.world_size()));
        Ok(work)
    }

    /// Fills `tensor` with what the first of two ranks sends, of which this is the second.
    pub fn receive(&self, tensor: &Tensor) -> Result<()> {
        self.start_transfer(RECEIVE, tensor, 1, Mode::Sync)?.wait()
    }

    fn start_all_reduce(&self, tensor: &Tensor, op: ReduceOp, mode: Mode) -> Result<Work> {
        const NAME: &str = "all_reduce";
        self.check_tensor(NAME, "the tensor", tensor)?;
        check_reduction(NAME, op, tensor)?;
        let work = self.start(NAME, self.backend.all_reduce(tensor, op, mode))?;
        self.count(|traffic| traffic.all_reduce.add_ring(tensor, 2, self.world_size()));
        Ok(work)
    }

    fn start_all_gather(&self, out: &Tensor, shard: &Tensor, mode: Mode) -> Result<Work> {
        const NAME: &str = "all_gather_into";
        self.check_shards(NAME, ("out", out), shard)?;
        let work = self.start(NAME, self.backend.all_gather(out, shard, mode))?;
        self.count(|traffic| traffic.all_gather.add_ring(out, 1, self.world_size()));
        Ok(work)
    }

    fn start_reduce_scatter(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
        mode: Mode,
    ) -> Result<Work> {
        const NAME: &str = "reduce_scatter";
        self.check_shards(NAME, ("input", input), shard)?;
        check_reduction(NAME, op, input)?;
        let work = self.start(NAME, self.backend.reduce_scatter(shard, input, op, mode))?;
        self.count(|traffic| traffic.reduce_scatter.add_ring(input, 1, self.world_size()));
        Ok(work)
    }

    fn start_broadcast(&self, tensor: &Tensor, root: usize, mode: Mode) -> Result<Work> {
        const NAME: &str = "broadcast";
        self.check_tensor(NAME, "the tensor", tensor)?;
        if root >= self.world_size() {
            bail!(
                Code::Dist,
                "{NAME}: rank {root} cannot be the root: the ranks are 0 to {}",
                self.world_size() - 1
            );
        }
        let work = self.start(NAME, self.backend.broadcast(tensor, root, mode))?;
        self.count(|traffic| traffic.broadcast.add_copy(tensor, self.world_size()));
        Ok(work)
    }

    /// A transfer is a broadcast in a group of two: unlike c10d's own, Gloo runs it beside the
    /// caller, who can look at what has become of the other end.
    fn start_transfer(
        &self,
        name: &'static str,
        tensor: &Tensor,
        rank: usize,
        mode: Mode,
    ) -> Result<Work> {
        self.check_tensor(name, "the tensor", tensor)?;
        if (self.rank(), self.world_size()) != (rank, 2) {
            let (own, ranks) = (self.rank(), self.world_size());
            bail!(Code::Internal, "{name} by rank {own} of {ranks}, and not by rank {rank} of 2");
        }
        self.start(name, self.backend.broadcast(tensor, 0, mode))
    }

    fn start_barrier(&self, mode: Mode) -> Result<Work> {
        let work = self.start("barrier", self.backend.barrier(mode))?;
        self.count(|traffic| traffic.barrier.add_call());
        Ok(work)
    }

    fn check_tensor(&self, operation: &str, name: &str, tensor: &Tensor) -> Result<()> {
        if !tensor.defined() {
            bail!(Code::Shape, "{operation}: {name} is undefined");
        }
        if tensor.device() != self.device {
            bail!(
                Code::Shape,
                "{operation}: {name} is on {}, but the group is on {}",
                device_name(tensor.device()),
                device_name(self.device)
            );
        }
        if !tensor.is_contiguous() {
            bail!(
                Code::Shape,
                "{operation}: {name} of shape {:?} must be contiguous, found strides {:?}",
                tensor.size(),
                tensor.stride()
            );
        }
        Ok(())
    }

    /// Checks that `whole` is as large as one shard a rank.
    fn check_shards(
        &self,
        operation: &str,
        (name, whole): (&str, &Tensor),
        shard: &Tensor,
    ) -> Result<()> {
        self.check_tensor(operation, name, whole)?;
        self.check_tensor(operation, "shard", shard)?;
        if whole.kind() != shard.kind() {
            bail!(
                Code::Shape,
                "{operation}: {name} has dtype {}, but shard has {}",
                dtype_name(whole.kind()),
                dtype_name(shard.kind())
            );
        }
        let world_size = self.world_size();
        if whole.numel() != shard.numel() * world_size {
            bail!(
                Code::Shape,
                "{operation}: {name} must have {world_size} times the {} elements of shard, one \
                 shard a rank, found {}",
                shard.numel(),
                whole.numel()
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Device, Kind};

    #[test]
    fn tensors_may_be_empty() {
        let group = ProcessGroup::single(Device::Cpu).unwrap();
        let (a, b) = (
            Tensor::zeros([0, 3], (Kind::Float, Device::Cpu)),
            Tensor::empty([0], (Kind::Float, Device::Cpu)),
        );
        group.all_reduce(&a, ReduceOp::Avg).unwrap();
        group.all_gather_into(&a, &b).unwrap();
        group.reduce_scatter(&a, &b, ReduceOp::Sum).unwrap();
        group.broadcast(&a, 0).unwrap();
    }
}
