//! The ranks that share the layers: what crosses between them within a layer.
//!
//! Attention and MLP are one region each. Their first products are split by outputs and their last by
//! inputs, so that a region is entered with what all ranks have and left with a sum over them. The
//! gradient goes the other way: it leaves the region as it is, and is summed where it comes out.
//!
//! With sequence parallelism (Korthikanti et al. 2022) a rank has a part of the tokens of each row
//! between two regions while it trains. A region is then entered with the tokens of all ranks, and each
//! rank leaves it with the sum of its own tokens; the gradient goes the other way again. The tokens of the
//! other ranks are let go of where a region is left, and gathered once more for its backward pass.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
};

use super::{
    ranks::{LayerRanks, Sharing},
    split::RowsHere,
    vocabulary::VocabularyPart,
};
use crate::{
    bridge::{autograd::own_gradient, storage},
    error::{Code, Error, Result},
    tensor::{Tensor, manual_seed, mix, no_grad},
};

/// The ranks that share the layers of a model.
pub struct TensorParallel {
    sharing: Sharing,
    /// The seed of the layer that runs, if it draws random numbers, and how often it was mixed.
    seed: Cell<Option<(u64, u64)>>,
    /// What the region that runs has gathered.
    entered: RefCell<Vec<Gathered>>,
}

/// The tokens of all ranks, which a backward pass needs again.
struct Gathered {
    whole: Tensor,
    /// This rank's.
    part: Tensor,
}

impl Gathered {
    fn release(&self) -> Result<()> {
        storage::release(&self.whole)
    }

    fn bring(&self, ranks: &dyn LayerRanks) -> Result<()> {
        storage::allocate(&self.whole)?;
        let parts = ranks.gather(&self.part)?;
        let _ = no_grad(|| Tensor::f_cat_out(&self.whole.f_data()?, &parts, 1))?;
        Ok(())
    }
}

impl fmt::Debug for TensorParallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorParallel({:?})", self.sharing.ranks.place())
    }
}

impl TensorParallel {
    /// Over these ranks.
    pub(crate) fn new(sharing: Sharing) -> Self {
        Self { sharing, seed: Cell::new(None), entered: RefCell::default() }
    }

    /// How the ranks share the layers.
    pub(crate) fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// This rank's number.
    pub(crate) fn rank(&self) -> i64 {
        self.sharing.ranks.place().0
    }

    /// How many ranks there are.
    pub(crate) fn size(&self) -> i64 {
        self.sharing.ranks.place().1
    }

    /// The tensors of all ranks.
    pub(crate) fn gather(&self, part: &Tensor) -> Result<Vec<Tensor>> {
        self.sharing.ranks.gather(part)
    }

    /// The rows of this rank, of `rows` of a vocabulary.
    pub(crate) fn rows_here(&self, rows: i64) -> RowsHere {
        RowsHere::of(rows, self.rank(), self.size())
    }

    /// This rank's part of a vocabulary of `rows` tokens.
    pub(crate) fn vocabulary(&self, rows: i64) -> VocabularyPart {
        VocabularyPart::new(Rc::clone(&self.sharing.ranks), self.rows_here(rows))
    }

    /// The seed of a layer that draws, while it runs.
    pub(crate) fn draw_from(&self, seed: Option<u64>) {
        self.seed.set(seed.map(|seed| (seed, 0)));
        if self.sharing.sequence_parallel {
            self.draw_alike();
        }
    }

    /// Makes the ranks draw apart, as each has its own part.
    fn draw_apart(&self) {
        self.reseed(1 + self.rank() as u64);
    }

    /// Makes the ranks draw alike between regions, where all have the same tokens.
    fn draw_alike(&self) {
        match self.sharing.sequence_parallel {
            true => self.draw_apart(),
            false => self.reseed(0),
        }
    }

    fn reseed(&self, rank: u64) {
        if let Some((seed, times)) = self.seed.get() {
            self.seed.set(Some((seed, times + 1)));
            manual_seed(mix(&[seed, times, rank]));
        }
    }

    /// Enters a region with `x` `[B, T, C]`, which all ranks have, or of which each has a part where
    /// tokens are `scattered`: its gradient is summed over them.
    pub(crate) fn enter(&self, x: &Tensor, scattered: bool) -> Result<Tensor> {
        self.draw_apart();
        let inside = self.shared(x, scattered)?;
        if scattered && x.requires_grad() {
            let (whole, part) = (inside.shallow_clone(), x.f_detach()?);
            self.entered.borrow_mut().push(Gathered { whole, part });
        }
        Ok(inside)
    }

    /// `x` for what each rank makes a part of and nothing leaves, such as a loss; otherwise as
    /// [`TensorParallel::enter`].
    pub(crate) fn shared(&self, x: &Tensor, scattered: bool) -> Result<Tensor> {
        let inside = match scattered {
            true => no_grad(|| gathered_tokens(&*self.sharing.ranks, x))?,
            false if !x.requires_grad() => return Ok(x.shallow_clone()),
            false => no_grad(|| x.f_data())?,
        };
        if x.requires_grad() {
            let ranks = Rc::clone(&self.sharing.ranks);
            own_gradient(&[x], &inside, move |grad| {
                if scattered {
                    return Ok(vec![Some(scattered_sum(&*ranks, grad)?)]);
                }
                // Others may hold the gradient.
                let sum = Tensor::f_empty(grad.size(), (grad.kind(), grad.device()))?;
                no_grad(|| sum.shallow_clone().f_copy_(grad))?;
                ranks.sum(&sum)?;
                Ok(vec![Some(sum)])
            })?;
        }
        Ok(inside)
    }

    /// Leaves a region with the sum of all ranks' `y`, which nothing else holds; with its own tokens
    /// of it where they are `scattered`.
    pub(crate) fn leave(&self, y: &Tensor, scattered: bool) -> Result<Tensor> {
        let mut entered = self.entered.take();
        if !y.requires_grad() {
            entered.clear();
        }
        let sum = self.summed(y, scattered, entered)?;
        self.draw_alike();
        Ok(sum)
    }

    /// The sum of all ranks' `y` `[B, T, C]`, which nothing else holds; its own tokens of it where they
    /// are `scattered`.
    pub(crate) fn sum(&self, y: &Tensor, scattered: bool) -> Result<Tensor> {
        self.summed(y, scattered, Vec::new())
    }

    /// The same, which lets go of what was gathered until the backward pass.
    fn summed(&self, y: &Tensor, scattered: bool, gathered: Vec<Gathered>) -> Result<Tensor> {
        gathered.iter().try_for_each(Gathered::release)?;
        let ranks = &self.sharing.ranks;
        let whole = no_grad(|| y.f_data())?;
        let sum = match scattered {
            true => no_grad(|| scattered_sum(&**ranks, &whole))?,
            false => {
                let sum = whole.f_contiguous()?;
                ranks.sum(&sum)?;
                sum
            }
        };
        if y.requires_grad() {
            let ranks = Rc::clone(ranks);
            own_gradient(&[y], &sum, move |grad| {
                gathered.iter().try_for_each(|gathered| gathered.bring(&*ranks))?;
                let whole = match scattered {
                    true => gathered_tokens(&*ranks, grad)?,
                    false => grad.shallow_clone(),
                };
                Ok(vec![Some(whole)])
            })?;
        }
        Ok(sum)
    }

    /// The first of this rank's tokens, of which it has `tokens`.
    pub(crate) fn first_token(&self, tokens: i64) -> i64 {
        self.rank() * tokens
    }

    /// Refuses rows of `tokens` tokens where the ranks cannot have equal parts of them.
    ///
    /// # Errors
    /// [`Code::Shape`] with the numbers.
    pub(crate) fn check_tokens(&self, tokens: i64) -> Result<()> {
        let ranks = self.size();
        if !self.sharing.sequence_parallel || tokens % ranks == 0 {
            return Ok(());
        }
        let message = format!(
            "rows of {tokens} tokens are no multiple of `tensor_parallel.autotp_size` {ranks}, among \
             whose ranks `sequence_parallel` divides them"
        );
        Err(Error::new(Code::Shape, message).hint(format!(
            "give the loader pad_to_multiple_of: {ranks}, or pack rows of such a length"
        )))
    }
}

/// The tokens of all ranks from `part`, `[B, T / ranks, C]`.
fn gathered_tokens(ranks: &dyn LayerRanks, part: &Tensor) -> Result<Tensor> {
    Ok(Tensor::f_cat(&ranks.gather(part)?, 1)?)
}

/// This rank's tokens of the sum of `whole` `[B, T, C]`.
fn scattered_sum(ranks: &dyn LayerRanks, whole: &Tensor) -> Result<Tensor> {
    let &[rows, tokens, width] = whole.size().as_slice() else {
        return Err(Error::new(Code::Internal, "tokens that are not [B, T, C]"));
    };
    let (_, count) = ranks.place();
    let parts = whole.f_reshape([rows, count, tokens / count, width])?;
    ranks.sum_parts(&parts.f_transpose(0, 1)?.f_contiguous()?)
}
