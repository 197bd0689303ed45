//! The bytes that a rank sends, counted by collective.
//!
//! The counts are the volume of the ring algorithms for one rank of N, as the ZeRO paper takes them
//! (Rajbhandari et al. 2020, section 7.1) and as NCCL and Gloo move large tensors. For a tensor of
//! B bytes:
//!
//! | collective | B is the size of | bytes sent |
//! |---|---|---|
//! | all-gather | the result | B (N - 1) / N |
//! | reduce-scatter | the input | B (N - 1) / N |
//! | all-reduce, a reduce-scatter and an all-gather | the tensor | 2 B (N - 1) / N |
//! | broadcast | the tensor | B |
//! | send | the tensor | B |
//!
//! A step thus sends 2 P elements of a model of P parameters in ZeRO's stages 0 to 2 and 3 P in
//! stage 3, times (N - 1) / N. A transport that picks another algorithm for a small tensor, a tree
//! say, sends about as much over all ranks, and differently much from each.

use crate::tensor::{Tensor, bytes_of};

/// The traffic of one kind of collective.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// How often it was started.
    pub calls: u64,
    /// Elements of the whole tensors: of what an all-gather makes, of what the others take.
    pub elements: u64,
    /// Bytes that this rank sends in a ring, in whole bytes, rounded up for each call.
    pub bytes: u64,
}

/// The bytes that this rank has sent, by collective; see the module's table for how it is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Reductions whose result every rank has.
    pub all_reduce: Sent,
    /// Concatenations of shards.
    pub all_gather: Sent,
    /// Reductions of which each rank has a slice.
    pub reduce_scatter: Sent,
    /// Copies of one rank's tensor.
    pub broadcast: Sent,
    /// Tensors for the next rank of two.
    pub send: Sent,
    /// Barriers, which move no tensor.
    pub barrier: Sent,
}

impl Traffic {
    /// The bytes sent after `earlier`, a count of the same group.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            all_reduce: self.all_reduce.since(earlier.all_reduce),
            all_gather: self.all_gather.since(earlier.all_gather),
            reduce_scatter: self.reduce_scatter.since(earlier.reduce_scatter),
            broadcast: self.broadcast.since(earlier.broadcast),
            send: self.send.since(earlier.send),
            barrier: self.barrier.since(earlier.barrier),
        }
    }

    /// All collectives together.
    pub fn total(&self) -> Sent {
        self.by_operation().iter().fold(Sent::default(), |sum, (_, sent)| Sent {
            calls: sum.calls + sent.calls,
            elements: sum.elements + sent.elements,
            bytes: sum.bytes + sent.bytes,
        })
    }

    /// Each collective by its name.
    pub fn by_operation(&self) -> [(&'static str, Sent); 6] {
        [
            ("all_reduce", self.all_reduce),
            ("all_gather", self.all_gather),
            ("reduce_scatter", self.reduce_scatter),
            ("broadcast", self.broadcast),
            ("send", self.send),
            ("barrier", self.barrier),
        ]
    }
}

impl Sent {
    fn since(self, earlier: Self) -> Self {
        Self {
            calls: self.calls - earlier.calls,
            elements: self.elements - earlier.elements,
            bytes: self.bytes - earlier.bytes,
        }
    }

    /// Counts a call that moves `whole`, of which a rank of `world_size` sends `rounds` times all
    /// parts but one.
    pub(super) fn add_ring(&mut self, whole: &Tensor, rounds: u64, world_size: usize) {
        let ranks = world_size as u64;
        self.add(whole, (rounds * bytes(whole) * (ranks - 1)).div_ceil(ranks));
    }

    /// Counts a call that passes `whole` on, to nobody in a world of one.
    pub(super) fn add_copy(&mut self, whole: &Tensor, world_size: usize) {
        self.add(whole, if world_size > 1 { bytes(whole) } else { 0 });
    }

    /// Counts a call that moves nothing.
    pub(super) fn add_call(&mut self) {
        self.calls += 1;
    }

    fn add(&mut self, whole: &Tensor, bytes: u64) {
        self.calls += 1;
        self.elements += whole.numel() as u64;
        self.bytes += bytes;
    }
}

fn bytes(tensor: &Tensor) -> u64 {
    bytes_of(tensor.kind(), tensor.numel() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dist::{ProcessGroup, ReduceOp},
        tensor::{Device, Kind},
    };

    /// One call of each collective, over 24 elements of 2 bytes, and what was counted.
    fn traffic(group: &ProcessGroup) -> Traffic {
        let ranks = group.world_size() as i64;
        let whole = Tensor::zeros([24], (Kind::BFloat16, Device::Cpu));
        let shard = Tensor::zeros([24 / ranks], (Kind::BFloat16, Device::Cpu));
        let before = group.traffic();
        group.all_reduce(&whole, ReduceOp::Sum).unwrap();
        group.all_gather_into(&whole, &shard).unwrap();
        group.reduce_scatter_async(&shard, &whole, ReduceOp::Sum).unwrap().wait().unwrap();
        group.broadcast(&whole, 0).unwrap();
        group.barrier().unwrap();
        group.traffic().since(&before)
    }

    #[test]
    fn the_volume_is_that_of_a_ring() {
        let group = ProcessGroup::simulated(1, 8, Device::Cpu).unwrap();
        let sent = |bytes| Sent { calls: 1, elements: 24, bytes };
        let expected = Traffic {
            all_reduce: sent(2 * 48 * 7 / 8),
            all_gather: sent(48 * 7 / 8),
            reduce_scatter: sent(48 * 7 / 8),
            broadcast: sent(48),
            send: Sent::default(),
            barrier: Sent { calls: 1, elements: 0, bytes: 0 },
        };
        assert_eq!(traffic(&group), expected);
        // Again: the counts of before are taken off.
        assert_eq!(traffic(&group), expected);
        assert_eq!(group.traffic().total().calls, 10);
        assert_eq!(group.traffic().total().bytes, 2 * (84 + 42 + 42 + 48));
    }

    #[test]
    fn one_rank_sends_nothing() {
        let alone = traffic(&ProcessGroup::single(Device::Cpu).unwrap());
        assert_eq!((alone.total().calls, alone.total().bytes), (5, 0));
    }

    #[test]
    fn parts_of_a_byte_are_rounded_up() {
        let group = ProcessGroup::simulated(0, 512, Device::Cpu).unwrap();
        let one = Tensor::zeros([1], (Kind::Float, Device::Cpu));
        group.all_reduce(&one, ReduceOp::Sum).unwrap();
        assert_eq!(group.traffic().all_reduce.bytes, 8);
    }

    #[test]
    fn a_refused_call_is_not_counted() {
        let group = ProcessGroup::simulated(0, 8, Device::Cpu).unwrap();
        let (whole, shard) = (
            Tensor::zeros([9], (Kind::Float, Device::Cpu)),
            Tensor::zeros([1], (Kind::Float, Device::Cpu)),
        );
        group.all_gather_into(&whole, &shard).unwrap_err();
        group.broadcast(&whole, 8).unwrap_err();
        assert_eq!(group.traffic(), Traffic::default());
    }
}
