//! A rank without the others: collectives that complete at once, as if every rank held the same.
//!
//! One process then runs the very code of one rank of 8 or of 1,024, to count what it keeps and
//! what it sends. Values stay finite and of the right size, but they are not those of a training:
//! except for one rank of 1, whose collectives are identities and start no operation.

use super::{rank::Rank, reduce_op::ReduceOp};
use crate::{
    error::Result,
    tensor::{Tensor, no_grad},
};

/// The other ranks of a simulated world. Shapes, dtypes and devices are the group's to check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Simulated(pub(super) Rank);

impl Simulated {
    /// Reduces `tensor` with as many equal ones.
    pub(super) fn all_reduce(self, tensor: &Tensor, op: ReduceOp) -> Result<()> {
        no_grad(|| self.reduce(tensor, op))
    }

    /// Writes `shard` into the slot of every rank in `out`. It may be this rank's slot itself.
    pub(super) fn all_gather(self, out: &Tensor, shard: &Tensor) -> Result<()> {
        let (ranks, len) = (self.0.world_size as i64, shard.numel() as i64);
        if is_alone_in_place(ranks, out, shard) {
            return Ok(());
        }
        no_grad(|| {
            let every = shard.f_view([1, len])?.f_expand([ranks, len], false)?;
            Ok(out.f_view([ranks, len])?.f_copy_(&every)?)
        })
    }

    /// Reduces this rank's slice of `input` with as many equal ones, into `shard`.
    pub(super) fn reduce_scatter(self, shard: &Tensor, input: &Tensor, op: ReduceOp) -> Result<()> {
        let len = shard.numel() as i64;
        if is_alone_in_place(self.0.world_size as i64, input, shard) {
            return Ok(());
        }
        no_grad(|| {
            let slice = input.f_view([-1])?.f_narrow(0, len * self.0.rank as i64, len)?;
            let mut shard = shard.f_view([-1])?;
            shard.f_copy_(&slice)?;
            self.reduce(&shard, op)
        })
    }

    fn reduce(self, tensor: &Tensor, op: ReduceOp) -> Result<()> {
        match op {
            ReduceOp::Sum if self.0.world_size > 1 => {
                let _ = tensor.shallow_clone().f_mul_scalar_(self.0.world_size as i64)?;
            }
            // Of equal values, and of one alone, these are the value.
            ReduceOp::Sum | ReduceOp::Avg | ReduceOp::Max | ReduceOp::Min => {}
        }
        Ok(())
    }
}

/// Whether the only slice of `whole` is `slice`, the same memory.
fn is_alone_in_place(ranks: i64, whole: &Tensor, slice: &Tensor) -> bool {
    ranks == 1 && whole.data_ptr() == slice.data_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dist::ProcessGroup,
        error::Code,
        tensor::{Device, Kind},
    };

    const OPS: [ReduceOp; 4] = [ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Max, ReduceOp::Min];

    fn rank_2_of_4() -> ProcessGroup {
        ProcessGroup::simulated(2, 4, Device::Cpu).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double).view([-1])).unwrap()
    }

    #[test]
    fn a_sum_is_that_of_equal_ranks_and_the_rest_leaves_values() {
        let group = rank_2_of_4();
        assert_eq!((group.rank(), group.world_size(), group.local_rank()), (2, 4, 0));
        for (kind, op) in [(Kind::BFloat16, ReduceOp::Sum), (Kind::Int64, ReduceOp::Sum)] {
            let tensor = Tensor::from_slice(&[1i64, -2]).to_kind(kind);
            group.all_reduce(&tensor, op).unwrap();
            assert_eq!(values(&tensor), [4.0, -8.0]);
        }
        for op in &OPS[1..] {
            let tensor = Tensor::from_slice(&[1f32, -2.0]);
            group.all_reduce_async(&tensor, *op).unwrap().wait().unwrap();
            assert_eq!(values(&tensor), [1.0, -2.0], "{op:?}");
        }
        assert!(!group.any(false).unwrap() && group.any(true).unwrap());
    }

    #[test]
    fn a_reduced_slice_is_this_ranks() {
        let group = rank_2_of_4();
        let input = Tensor::arange(8, (Kind::Float, Device::Cpu)).view([2, 4]);
        for op in OPS {
            let shard = Tensor::zeros([2], (Kind::Float, Device::Cpu));
            group.reduce_scatter(&shard, &input, op).unwrap();
            let times = if op == ReduceOp::Sum { 4.0 } else { 1.0 };
            assert_eq!(values(&shard), [4.0 * times, 5.0 * times], "{op:?}");
        }
        assert_eq!(values(&input), (0..8).map(f64::from).collect::<Vec<_>>());
    }

    #[test]
    fn every_slot_gets_the_shard_even_out_of_its_own() {
        let group = rank_2_of_4();
        let out = Tensor::arange(12, (Kind::Float, Device::Cpu));
        group.all_gather_into(&out, &out.narrow(0, 6, 3)).unwrap();
        assert_eq!(values(&out), [6.0, 7.0, 8.0].repeat(4));
        let shard = Tensor::from_slice(&[1f32, 2.0, 3.0]);
        let work = group.all_gather_into_async(&out, &shard).unwrap();
        assert!(work.is_completed().unwrap());
        work.wait().unwrap();
        assert_eq!(values(&out), [1.0, 2.0, 3.0].repeat(4));
    }

    #[test]
    fn a_slice_can_be_reduced_and_gathered_in_place() {
        let group = rank_2_of_4();
        let flat = Tensor::arange(4, (Kind::Float, Device::Cpu));
        group.reduce_scatter(&flat.narrow(0, 2, 1), &flat, ReduceOp::Sum).unwrap();
        assert_eq!(values(&flat), [0.0, 1.0, 8.0, 3.0]);
    }

    #[test]
    fn parameters_of_autograd_are_written_without_a_graph() {
        let leaf = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        rank_2_of_4().all_reduce(&leaf, ReduceOp::Sum).unwrap();
        rank_2_of_4().all_gather_into(&leaf, &leaf.narrow(0, 2, 1)).unwrap();
        assert!(leaf.is_leaf());
        assert_eq!(values(&leaf.detach()), [4.0; 4]);
    }

    #[test]
    fn broadcasts_barriers_and_empty_tensors_do_nothing() {
        let group = rank_2_of_4();
        let tensor = Tensor::from_slice(&[1f32]);
        group.broadcast(&tensor, 3).unwrap();
        group.barrier().unwrap();
        group.barrier_async().unwrap().wait().unwrap();
        assert_eq!(values(&tensor), [1.0]);
        let empty = Tensor::zeros([0], (Kind::Float, Device::Cpu));
        group.all_reduce(&empty, ReduceOp::Sum).unwrap();
        group.all_gather_into(&empty, &empty).unwrap();
        group.reduce_scatter(&empty, &empty, ReduceOp::Sum).unwrap();
    }

    #[test]
    fn what_a_connected_group_refuses_is_refused() {
        let group = rank_2_of_4();
        let (whole, shard) = (Tensor::from_slice(&[0f32; 7]), Tensor::from_slice(&[0f32; 2]));
        assert_eq!(group.all_gather_into(&whole, &shard).unwrap_err().code(), Code::Shape);
        let e = group.reduce_scatter(&shard, &whole, ReduceOp::Sum).unwrap_err();
        assert_eq!(e.code(), Code::Shape);
        let integers = Tensor::from_slice(&[0i64; 8]);
        assert_eq!(group.all_reduce(&integers, ReduceOp::Avg).unwrap_err().code(), Code::Shape);
        assert_eq!(group.broadcast(&shard, 4).unwrap_err().code(), Code::Dist);
    }

    #[test]
    fn a_world_without_this_rank_is_refused() {
        for (rank, world_size) in [(0, 0), (4, 4)] {
            let e = ProcessGroup::simulated(rank, world_size, Device::Cpu).err().unwrap();
            assert_eq!(e.code(), Code::Dist);
        }
        let e = ProcessGroup::simulated(0, 2, Device::Mps).err().expect("no transport");
        assert_eq!(e.message(), "no transport for mps: the CPU has Gloo, CUDA has NCCL");
    }
}
