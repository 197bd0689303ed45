//! The ranks that share layers, as a transport reaches them.

use std::rc::Rc;

use crate::{error::Result, tensor::Tensor};

/// The ranks that share the layers. All of them make the same calls.
pub trait LayerRanks {
    /// This rank's number, and how many there are.
    fn place(&self) -> (i64, i64);

    /// Sums a tensor over the ranks, in place.
    fn sum(&self, tensor: &Tensor) -> Result<()>;

    /// Sums `parts`, `[ranks, ...]`, of which rank `i` gets the sum of part `i`.
    fn sum_parts(&self, parts: &Tensor) -> Result<Tensor>;

    /// The tensors of all ranks, alike in shape, in the order of the ranks.
    fn gather(&self, part: &Tensor) -> Result<Vec<Tensor>>;
}

/// How ranks share the layers.
#[derive(Clone)]
pub struct Sharing {
    /// The ranks.
    pub ranks: Rc<dyn LayerRanks>,
    /// Whether a rank has a part of the tokens between two regions while it trains.
    pub sequence_parallel: bool,
}

impl Sharing {
    /// The number of this rank and of all, and whether tokens are parted.
    pub(crate) fn facts(&self) -> ((i64, i64), bool) {
        (self.ranks.place(), self.sequence_parallel)
    }
}
