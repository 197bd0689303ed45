//! The ranks that share the layers: what crosses between them within a layer.
//!
//! Attention and MLP are one region each. Their first products are split by outputs and their last by
//! inputs, so that a region is entered with what all ranks have and left with a sum over them. The
//! gradient goes the other way: it leaves the region as it is, and is summed where it comes out.

use std::{cell::Cell, fmt, rc::Rc};

use crate::{
    bridge::autograd::own_gradient,
    error::Result,
    tensor::{Tensor, manual_seed, mix, no_grad},
};

/// The ranks that share the layers, as a transport reaches them. All of them make the same calls.
pub trait LayerRanks {
    /// This rank's number, and how many there are.
    fn place(&self) -> (i64, i64);

    /// Sums a tensor over the ranks, in place.
    fn sum(&self, tensor: &Tensor) -> Result<()>;

    /// The tensors of all ranks, alike in shape, in the order of the ranks.
    fn gather(&self, part: &Tensor) -> Result<Vec<Tensor>>;
}

/// The ranks that share the layers of a model.
pub struct TensorParallel {
    ranks: Rc<dyn LayerRanks>,
    /// The seed of the layer that runs, if it draws random numbers, and how often it was mixed.
    seed: Cell<Option<(u64, u64)>>,
}

impl fmt::Debug for TensorParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorParallel({:?})", self.ranks.place())
    }
}

impl TensorParallel {
    /// Over these ranks.
    pub(super) fn new(ranks: Rc<dyn LayerRanks>) -> Self {
        Self { ranks, seed: Cell::new(None) }
    }

    /// This rank's number.
    pub(super) fn rank(&self) -> i64 {
        self.ranks.place().0
    }

    /// How many ranks there are.
    pub(super) fn size(&self) -> i64 {
        self.ranks.place().1
    }

    /// The tensors of all ranks.
    pub(super) fn gather(&self, part: &Tensor) -> Result<Vec<Tensor>> {
        self.ranks.gather(part)
    }

    /// The seed of a layer that draws, while it runs.
    pub(super) fn draw_from(&self, seed: Option<u64>) {
        self.seed.set(seed.map(|seed| (seed, 0)));
    }

    /// Makes the ranks draw apart, in a region, or alike.
    fn reseed(&self, rank: u64) {
        if let Some((seed, times)) = self.seed.get() {
            self.seed.set(Some((seed, times + 1)));
            manual_seed(mix(&[seed, times, rank]));
        }
    }

    /// Enters a region with `x`, which all ranks have: its gradient is summed over them.
    pub(super) fn enter(&self, x: &Tensor) -> Result<Tensor> {
        self.reseed(1 + self.rank() as u64);
        if !x.requires_grad() {
            return Ok(x.shallow_clone());
        }
        let inside = no_grad(|| x.f_data())?;
        let ranks = Rc::clone(&self.ranks);
        own_gradient(&[x], &inside, move |grad| {
            // Others may hold the gradient.
            let sum = Tensor::f_empty(grad.size(), (grad.kind(), grad.device()))?;
            no_grad(|| sum.shallow_clone().f_copy_(grad))?;
            ranks.sum(&sum)?;
            Ok(vec![Some(sum)])
        })?;
        Ok(inside)
    }

    /// Leaves a region with the sum of all ranks' `y`, which nothing else holds.
    pub(super) fn leave(&self, y: &Tensor) -> Result<Tensor> {
        let sum = no_grad(|| y.f_data())?.f_contiguous()?;
        self.ranks.sum(&sum)?;
        if y.requires_grad() {
            own_gradient(&[y], &sum, |grad| Ok(vec![Some(grad.shallow_clone())]))?;
        }
        self.reseed(0);
        Ok(sum)
    }
}
