//! The parameters of one layer after another, on ranks that do not have all of them.
//!
//! In ZeRO's stage 3 the parameters of a unit are on a rank only while they are used. Whoever runs
//! the layers takes their units from a [`Visit`], in the order of the pass: each is [`Present`] until
//! it is dropped, and the [`Residence`] knows which come next. A model without a residence has all of
//! its parameters, and a visit costs nothing but the first, which gives them their first values.

use std::{ops::Deref, rc::Rc};

use super::{Embedding, FlatUnit, Model, origin::Origin};
use crate::{
    error::{Code, Error, Result},
    tensor::{Tensor, check_memory},
};

/// The way through the layers, which decides the units and their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The embedding, each block, the head; a tied projection comes once more before the head.
    Forward,
    /// The head, each block from the last, and a custom first layer; the gradient of GPT-2's
    /// embedding needs no parameter.
    Backward,
}

/// Where the parameters are that are not in use.
pub trait Residence {
    /// Lets the parameters of unit `i` be there, and may bring those of `following`, which are used
    /// after it in this order. Every rank must call it.
    ///
    /// # Errors
    /// Memory is exhausted; another rank fails.
    fn bring(&self, units: &[FlatUnit], i: usize, following: &[usize]) -> Result<()>;

    /// Lets the parameters of unit `i` go, as often as they were asked for.
    fn let_go(&self, units: &[FlatUnit], i: usize);

    /// Whether `flag` is set on any rank: the same answer on all. Every rank must call it.
    ///
    /// # Errors
    /// Another rank fails.
    fn any(&self, flag: bool) -> Result<bool>;
}

/// The units of a pass that are still to come.
pub struct Visit<'a> {
    model: &'a Model,
    residence: Option<Rc<dyn Residence>>,
    order: Vec<usize>,
    place: usize,
}

/// A unit whose parameters are there.
pub struct Present<'a> {
    unit: &'a FlatUnit,
    _leave: Option<Leave<'a>>,
}

/// Lets a unit go when it is dropped.
struct Leave<'a> {
    residence: Rc<dyn Residence>,
    units: &'a [FlatUnit],
    index: usize,
}

/// What the head needs: its own unit, and the projection's where that is another.
pub struct HeadUnits<'a> {
    own: Present<'a>,
    tied: Option<Present<'a>>,
    param: usize,
}

impl Model {
    /// Begins a pass. All of its units have to be asked for, or what was brought ahead stays there
    /// until the next pass.
    pub fn visit(&self, pass: Direction) -> Visit<'_> {
        let (head, blocks) = (self.head_unit(), 1..self.head_unit());
        let order = match pass {
            Direction::Forward => {
                let tied = (self.projection_place().0 != head).then_some(0);
                std::iter::once(0).chain(blocks).chain(tied).chain([head]).collect()
            }
            Direction::Backward => {
                let first = matches!(self.embedding, Embedding::Custom(_)).then_some(0);
                std::iter::once(head).chain(blocks.rev()).chain(first).collect()
            }
        };
        Visit { model: self, residence: self.residence.borrow().clone(), order, place: 0 }
    }

    /// Unit `i` alone, outside of a pass. Every rank must call it.
    ///
    /// # Errors
    /// Those of [`Residence::bring`].
    pub fn present(&self, i: usize) -> Result<Present<'_>> {
        let residence = self.residence.borrow().clone();
        Visit { model: self, residence, order: vec![i], place: 0 }.unit()
    }

    /// Takes part in a forward pass that another rank makes.
    ///
    /// # Errors
    /// Memory is exhausted; another rank fails.
    pub fn accompany(&self) -> Result<()> {
        self.visit(Direction::Forward).try_for_each(|unit| unit.map(drop))
    }

    /// Whether parameters are on other ranks too, so that all ranks must run the layers together.
    pub fn is_shared_out(&self) -> bool {
        self.residence.borrow().is_some()
    }

    /// [`Residence::any`]; without a residence a rank goes its own way.
    ///
    /// # Errors
    /// Another rank fails.
    pub fn any(&self, flag: bool) -> Result<bool> {
        self.residence.borrow().as_ref().map_or(Ok(flag), |residence| residence.any(flag))
    }

    /// Brings all parameters here for good: their first values, or from other ranks, which all must
    /// call it then.
    ///
    /// # Errors
    /// [`Code::Memory`]; another rank fails.
    pub fn make_whole(&self) -> Result<()> {
        let absent = self.units.iter().filter(|unit| !unit.is_here());
        let bytes = absent.map(FlatUnit::bytes).sum();
        check_memory(self.device, bytes, "the model")?;
        (0..self.units.len()).try_for_each(|i| self.bring(i))?;
        self.settle(None);
        Ok(())
    }

    /// Brings the parameters of unit `i` for good, as [`Model::make_whole`] does;
    /// [`Model::settle`] follows when all units were brought.
    ///
    /// # Errors
    /// Memory is exhausted; another rank fails.
    pub fn bring(&self, i: usize) -> Result<()> {
        if let Some(origin) = &*self.origin.borrow() {
            return origin.bring(&self.units[i], i);
        }
        let residence = self.residence.borrow().clone();
        residence.map_or(Ok(()), |residence| residence.bring(&self.units, i, &[]))
    }

    /// Whether the first values of parameters are those that its maker gave on this rank, and are
    /// still to be used.
    pub fn starts_from_values(&self) -> bool {
        matches!(&*self.origin.borrow(), Some(Origin::Values(_)))
    }

    /// Says where the parameters are from now on while they are not used; `None` for here.
    pub fn settle(&self, residence: Option<Rc<dyn Residence>>) {
        *self.origin.borrow_mut() = None;
        *self.residence.borrow_mut() = residence;
    }
}

impl<'a> Visit<'a> {
    /// The next unit, which there must be.
    ///
    /// # Errors
    /// Those of [`Residence::bring`].
    pub fn unit(&mut self) -> Result<Present<'a>> {
        let gone = || Err(Error::new(Code::Internal, "no unit is left of this pass"));
        self.next().unwrap_or_else(gone)
    }

    /// What the head needs at the end of [`Direction::Forward`].
    ///
    /// # Errors
    /// Those of [`Residence::bring`].
    pub fn head(&mut self) -> Result<HeadUnits<'a>> {
        let (unit, param) = self.model.projection_place();
        let tied = if unit == self.model.head_unit() { None } else { Some(self.unit()?) };
        Ok(HeadUnits { own: self.unit()?, tied, param })
    }
}

impl<'a> Iterator for Visit<'a> {
    type Item = Result<Present<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let index = *self.order.get(self.place)?;
        self.place += 1;
        let units = self.model.units();
        if self.model.origin.borrow().is_some()
            && let Err(e) = self.model.make_whole()
        {
            return Some(Err(e));
        }
        let present = |leave| Present { unit: &units[index], _leave: leave };
        let Some(residence) = &self.residence else { return Some(Ok(present(None))) };
        let brought = residence.bring(units, index, &self.order[self.place..]);
        let leave = || Leave { residence: Rc::clone(residence), units, index };
        Some(brought.map(|()| present(Some(leave()))))
    }
}

impl Deref for Present<'_> {
    type Target = FlatUnit;

    fn deref(&self) -> &FlatUnit {
        self.unit
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.residence.let_go(self.units, self.index);
    }
}

impl HeadUnits<'_> {
    /// The head's own parameters, the norm's first.
    pub fn params(&self) -> &[Tensor] {
        self.own.params()
    }

    /// The matrix that turns hidden states into logits, `[V, C]`: the head's own, or the token
    /// embedding where they are tied.
    pub fn projection(&self) -> &Tensor {
        &self.tied.as_ref().unwrap_or(&self.own).params()[self.param]
    }
}
