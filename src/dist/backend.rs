//! The other end of a group's collectives: ranks behind a transport, or none.

use std::time::Duration;

use super::{
    exchange::{Appointment, Member},
    reduce_op::ReduceOp,
    simulated::Simulated,
};
use crate::{
    bridge::dist::{self as bridge, Mode},
    error::Result,
    tensor::Tensor,
};

/// The other side of a group's collectives.
pub(super) enum Backend {
    /// Ranks that are connected.
    Connected(bridge::Group),
    /// Ranks in other threads of this process.
    InProcess(Member),
    /// Ranks that do not exist; a group of one rank has no others.
    Simulated(Simulated),
}

/// A collective that was started.
pub(super) enum Started {
    /// The transport runs it.
    UnderWay(bridge::Work),
    /// The other threads come to it.
    Appointed(Appointment),
    /// Its result is there.
    Done,
}

impl Backend {
    pub(super) fn all_reduce(&self, tensor: &Tensor, op: ReduceOp, mode: Mode) -> Result<Started> {
        match self {
            Self::Connected(group) => group.all_reduce(tensor, op, mode).map(Into::into),
            Self::InProcess(member) => member.all_reduce(tensor, op).map(Started::Appointed),
            Self::Simulated(ranks) => ranks.all_reduce(tensor, op).map(Into::into),
        }
    }

    pub(super) fn all_gather(&self, out: &Tensor, shard: &Tensor, mode: Mode) -> Result<Started> {
        match self {
            Self::Connected(group) => group.all_gather(out, shard, mode).map(Into::into),
            Self::InProcess(member) => member.all_gather(out, shard).map(Started::Appointed),
            Self::Simulated(ranks) => ranks.all_gather(out, shard).map(Into::into),
        }
    }

    pub(super) fn reduce_scatter(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
        mode: Mode,
    ) -> Result<Started> {
        match self {
            Self::Connected(group) => group.reduce_scatter(shard, input, op, mode).map(Into::into),
            Self::InProcess(member) => {
                member.reduce_scatter(shard, input, op).map(Started::Appointed)
            }
            Self::Simulated(ranks) => ranks.reduce_scatter(shard, input, op).map(Into::into),
        }
    }

    pub(super) fn broadcast(&self, tensor: &Tensor, root: usize, mode: Mode) -> Result<Started> {
        match self {
            Self::Connected(group) => group.broadcast(tensor, root, mode).map(Into::into),
            Self::InProcess(member) => member.broadcast(tensor, root).map(Started::Appointed),
            Self::Simulated(_) => Ok(Started::Done),
        }
    }

    pub(super) fn barrier(&self, mode: Mode) -> Result<Started> {
        match self {
            Self::Connected(group) => group.barrier(mode).map(Into::into),
            Self::InProcess(member) => member.barrier().map(Started::Appointed),
            Self::Simulated(_) => Ok(Started::Done),
        }
    }

    /// As [`bridge::Group::leak`].
    pub(super) fn leak(&mut self) {
        match self {
            Self::Connected(group) => group.leak(),
            Self::InProcess(_) | Self::Simulated(_) => {}
        }
    }
}

impl Started {
    /// As [`bridge::Work::wait`].
    pub(super) fn wait(&self, time: Duration) -> Result<bool> {
        match self {
            Self::UnderWay(work) => work.wait(time),
            Self::Appointed(appointment) => appointment.wait(),
            Self::Done => Ok(true),
        }
    }

    /// As [`bridge::Work::is_completed`].
    pub(super) fn is_completed(&self) -> Result<bool> {
        match self {
            Self::UnderWay(work) => work.is_completed(),
            Self::Appointed(appointment) => Ok(appointment.is_completed()),
            Self::Done => Ok(true),
        }
    }
}

impl From<bridge::Work> for Started {
    fn from(work: bridge::Work) -> Self {
        Self::UnderWay(work)
    }
}

impl From<()> for Started {
    fn from((): ()) -> Self {
        Self::Done
    }
}
