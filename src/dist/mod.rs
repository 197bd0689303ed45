//! Process groups and collectives: how the ranks of one training run exchange tensors.
//!
//! The transport is libtorch's own: Gloo between host memory, NCCL between CUDA devices, the same
//! that PyTorch uses. A run of one rank goes through the same calls, so that nothing above asks
//! whether it is alone. The launcher's contract is torchrun's: one process a rank, told by `RANK`,
//! `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` ([`Rendezvous::from_env`]).
//!
//! Shapes, dtypes and devices are checked on this rank before the transport is called, because a
//! rank that sends the wrong number of bytes makes all the others wait. The state of each rank is
//! told to the others, so that an error names the rank that did not come ([`RankState`]).
//!
//! Processes are not started here: that is `launch`, which meets the ranks at a [`Board`]. The
//! engine decides what is sent.

mod backend;
mod board;
mod connect;
mod exchange;
mod gathered;
mod group;
mod mesh;
mod rank;
mod rank_state;
mod reduce_op;
mod rendezvous;
mod shard;
mod simulated;
mod traffic;
mod watch;
mod work;

pub use board::Board;
pub use connect::check_gloo;
pub use exchange::Exchange;
pub use group::ProcessGroup;
pub use mesh::{Link, Mesh};
pub use rank_state::{Call, RankPhase, RankState};
pub use reduce_op::ReduceOp;
pub use rendezvous::Rendezvous;
pub use shard::{Reduction, ShardSpec};
pub use traffic::{Sent, Traffic};
pub use work::Work;
