//! A rank and the world size, and their words in errors.

use crate::error::{Code, Error};

/// Which rank this is, for results and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rank {
    pub(super) rank: usize,
    pub(super) world_size: usize,
}

impl Rank {
    /// The error of an operation between ranks, from what libtorch says about it.
    pub(super) fn failed(self, operation: &str, e: Error) -> Error {
        if e.code() == Code::Memory {
            return e;
        }
        let Self { rank, world_size } = self;
        let message = format!("{operation} failed on rank {rank} of {world_size}: {e}");
        let error = Error::new(Code::Dist, message);
        if world_size == 1 {
            return error;
        }
        error.hint(
            "another rank has stopped, or has called other collectives; the first error among the \
             outputs of all ranks tells",
        )
    }
}
