//! Process groups and collectives: how the ranks of one training run exchange tensors.
//!
//! The transport is libtorch's own: Gloo between host memory, NCCL between CUDA devices, the same
//! that PyTorch uses. A run of one rank goes through the same calls, so that nothing above asks
//! whether it is alone. The launcher's contract is torchrun's: one process a rank, told by `RANK`,
//! `WORLD_SIZE`, `LOCAL_RANK`, `MASTER_ADDR` and `MASTER_PORT` ([`Rendezvous::from_env`]).
//!
//! Shapes, dtypes and devices are checked on this rank before the transport is called, because a
//! rank that sends the wrong number of bytes makes all the others wait. It does not start
//! processes and decides nothing about what is sent; that is `zero` and `engine`.

mod group;
mod rendezvous;
mod work;

pub use group::{ProcessGroup, ReduceOp};
pub use rendezvous::Rendezvous;
pub use work::Work;
