//! The gradients of units: flat tensors, to which each parameter's gradient is added as it is made.
//!
//! The first gradient of a parameter is written over what the memory held, so that nothing is cleared
//! to be added to. An operation whose gradient is written by hand (`modules/linear.rs`) reaches the
//! tensor through a [`Sink`], and needs no tensor of its own for it.

use std::{cell::RefCell, rc::Rc};

use super::{param_spec::ParamPlace, unit::FlatUnit};
use crate::{
    bridge::{
        lists::{add_all, copy_all, zero_all},
        memory::{self, count_as},
        ops::product,
    },
    error::{Code, Error, Result},
    tensor::{Kind, Tensor, no_grad},
};

/// The gradient of a unit that is being made.
#[derive(Debug)]
pub struct UnitGradient {
    flat: Tensor,
    /// The parameters' parts of `flat`.
    views: Vec<Tensor>,
    /// Whether a part holds a gradient, or what the memory held before.
    written: Vec<bool>,
    /// Gradients of small parameters that wait to be added together.
    waiting: Vec<(usize, Tensor)>,
}

/// The gradients of all units, each from its first use on.
#[derive(Debug)]
pub struct UnitGradients {
    units: Rc<[FlatUnit]>,
    kind: Kind,
    gradients: Vec<Option<UnitGradient>>,
}

/// Where the operations of a forward pass will add the gradients that they make by hand: into
/// gradients of the pass at first, and from the backward pass on into those of the step.
#[derive(Debug, Clone)]
pub struct Sink(Rc<RefCell<SharedGradients>>);

/// The gradients of a step, which the operations of a backward pass add to.
pub type SharedGradients = Rc<RefCell<UnitGradients>>;

/// The sink of one parameter.
#[derive(Debug, Clone)]
pub struct ParamSink {
    sink: Sink,
    place: ParamPlace,
}

impl UnitGradient {
    /// One without any gradient yet, laid out as `unit`, in the format `kind`.
    pub fn new(unit: &FlatUnit, kind: Kind) -> Result<Self> {
        let flat = {
            let _counting = count_as(memory::Kind::Gradients)?;
            unit.empty_of(kind)?
        };
        zero_all(&unit.padding(&flat))?;
        let views = unit.views(&flat);
        let written = vec![false; views.len()];
        Ok(Self { flat, views, written, waiting: Vec::new() })
    }

    /// Adds `scale * a @ b` to the gradient of parameter `i`: on CUDA and on the CPU in float32 within
    /// the product itself.
    pub fn add_product(&mut self, i: usize, (a, b): (&Tensor, &Tensor), scale: f64) -> Result<()> {
        let beta = if self.written[i] { 1.0 } else { 0.0 };
        product(&self.views[i], (a, b), beta, scale)?;
        self.written[i] = true;
        Ok(())
    }

    /// Adds the sum of `grad` over its first dimension to the gradient of parameter `i`: to all of it,
    /// or to as many rows as `grad` has, from row `from` on.
    pub fn add_rows(&mut self, i: usize, from: i64, grad: &Tensor) -> Result<()> {
        let (rows, kind) = ([0i64].as_slice(), self.flat.kind());
        let (len, all) = (grad.size()[1], self.views[i].size()[0]);
        no_grad(|| {
            if len < all {
                let view = self.open(i)?.f_narrow(0, from, len)?;
                let sum = grad.f_sum_dim_intlist(rows, false, kind)?;
                let _ = view.shallow_clone().f_add_(&sum)?;
                return Ok(());
            }
            match self.written[i] {
                true => self.waiting.push((i, grad.f_sum_dim_intlist(rows, false, kind)?)),
                false => drop(grad.f_sum_intlist_out(&self.views[i], rows, false, kind)?),
            }
            self.written[i] = true;
            Ok(())
        })
    }

    /// Adds each row of `rows` `[n, width]` to the row of parameter `i` that `ids` `[n]` names.
    pub fn add_at(&mut self, i: usize, ids: &Tensor, rows: &Tensor) -> Result<()> {
        no_grad(|| {
            let table = self.open(i)?;
            let rows = rows.f_to_kind(table.kind())?;
            let _ = table.shallow_clone().f_index_add_(0, ids, &rows)?;
            Ok(())
        })
    }

    /// Adds gradients of parameters by number, each named once, and those that wait.
    pub fn add(&mut self, grads: &[(usize, Tensor)]) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        let (mut new, mut alike, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (i, grad) in grads.iter().chain(&waiting) {
            let view = &self.views[*i];
            match self.written[*i] {
                false => new.push((view, grad)),
                true if view.kind() == grad.kind() => alike.push((view, grad)),
                true => others.push((view, grad)),
            }
        }
        copy_all(new)?;
        // Of two formats they would be added one by one.
        let converted = others.iter().map(|(view, _)| Ok(view.f_empty_like()?));
        let converted: Vec<Tensor> = converted.collect::<Result<_>>()?;
        copy_all(converted.iter().zip(others.iter().map(|(_, grad)| *grad)))?;
        let others = others.iter().map(|(view, _)| *view).zip(&converted);
        add_all(alike.into_iter().chain(others))?;
        grads.iter().for_each(|&(i, _)| self.written[i] = true);
        Ok(())
    }

    /// The gradient of parameter `i`, to be added to.
    pub fn open(&mut self, i: usize) -> Result<&Tensor> {
        self.add(&[])?;
        if !self.written[i] {
            zero_all([&self.views[i]])?;
            self.written[i] = true;
        }
        Ok(&self.views[i])
    }

    /// Adds what `other`, laid out alike, holds.
    pub fn merge(&mut self, mut other: Self) -> Result<()> {
        other.add(&[])?;
        let held = other.views.into_iter().enumerate().filter(|(i, _)| other.written[*i]);
        self.add(&held.collect::<Vec<_>>())
    }

    /// The flat gradient, 0 for parameters that got none.
    pub fn complete(mut self) -> Result<Tensor> {
        self.add(&[])?;
        let none = self.views.iter().zip(&self.written).filter(|(_, written)| !**written);
        zero_all(none.map(|(view, _)| view))?;
        Ok(self.flat)
    }
}

impl UnitGradients {
    /// None yet of these units, in the format `kind`.
    pub fn new(units: &Rc<[FlatUnit]>, kind: Kind) -> Self {
        let gradients = units.iter().map(|_| None).collect();
        Self { units: Rc::clone(units), kind, gradients }
    }

    /// The gradient of unit `i`, to be added to.
    pub fn open(&mut self, i: usize) -> Result<&mut UnitGradient> {
        let gradient = &mut self.gradients[i];
        if gradient.is_none() {
            *gradient = Some(UnitGradient::new(&self.units[i], self.kind)?);
        }
        gradient.as_mut().ok_or_else(|| Error::new(Code::Internal, "a gradient that was just made"))
    }

    /// Takes the gradient of unit `i` out; `None` if nothing was added.
    pub fn take(&mut self, i: usize) -> Option<UnitGradient> {
        self.gradients[i].take()
    }

    /// Adds all that `other` holds; what this one has not becomes its own.
    fn adopt(&mut self, other: &mut Self) -> Result<()> {
        for (own, made) in self.gradients.iter_mut().zip(&mut other.gradients) {
            let Some(made) = made.take() else { continue };
            match own {
                Some(own) => own.merge(made)?,
                none => *none = Some(made),
            }
        }
        Ok(())
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.gradients.iter_mut().for_each(|gradient| *gradient = None);
    }
}

impl Sink {
    /// The sink of a forward pass over these units.
    pub fn new(units: &Rc<[FlatUnit]>, kind: Kind) -> Self {
        let of_the_pass = Rc::new(RefCell::new(UnitGradients::new(units, kind)));
        Self(Rc::new(RefCell::new(of_the_pass)))
    }

    /// From now on operations add to `gradients`, which get what the pass has made.
    pub fn turn_to(&self, gradients: &SharedGradients) -> Result<()> {
        let of_the_pass = self.0.replace(Rc::clone(gradients));
        gradients.borrow_mut().adopt(&mut of_the_pass.borrow_mut())
    }

    pub(super) fn of(&self, place: ParamPlace) -> ParamSink {
        ParamSink { sink: self.clone(), place }
    }
}

impl ParamSink {
    /// Adds to the gradient of the unit, in which the parameter has the number that `add` is given.
    pub fn with(&self, add: impl FnOnce(&mut UnitGradient, usize) -> Result<()>) -> Result<()> {
        let ParamPlace { unit, index } = self.place;
        let gradients = Rc::clone(&self.sink.0.borrow());
        add(gradients.borrow_mut().open(unit)?, index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Init, ParamSpec},
        tensor::Device,
    };

    fn unit() -> FlatUnit {
        let spec = |name: &str, shape: &[i64]| ParamSpec::new(name, shape, Init::Zeros);
        let specs = vec![spec("a", &[2, 3]), spec("b", &[3]), spec("c", &[2])];
        FlatUnit::zeros(specs, Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f64> {
        Vec::try_from(x.to_kind(Kind::Double).reshape([-1])).unwrap()
    }

    /// A gradient in memory that held something else.
    fn dirty(kind: Kind) -> UnitGradient {
        let gradient = UnitGradient::new(&unit(), kind).unwrap();
        gradient.views.iter().for_each(|view| drop(view.shallow_clone().fill_(f64::NAN)));
        gradient
    }

    #[test]
    fn gradients_add_up_whichever_way_they_come() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for grad_kind in [Kind::Float, Kind::BFloat16] {
                if kind != Kind::Float && grad_kind == Kind::Float {
                    continue;
                }
                let of = |values: &[f32]| Tensor::from_slice(values).to_kind(grad_kind);
                let (x, y) = (of(&[1.0, 2.0]).view([2, 1]), of(&[1.0, 2.0, 3.0]).view([1, 3]));
                let mut gradient = dirty(kind);
                for _ in 0..2 {
                    gradient.add_product(0, (&x, &y), 0.5).unwrap();
                    gradient.add_rows(1, 0, &Tensor::cat(&[&y, &y], 0)).unwrap();
                    gradient.add(&[(2, of(&[5.0, 6.0]))]).unwrap();
                }
                let mut other = dirty(kind);
                let _ = other.open(2).unwrap().shallow_clone().g_add_scalar_(1.0);
                gradient.merge(other).unwrap();
                let views = unit().views(&gradient.complete().unwrap());
                assert_eq!(values(&views[0]), [1.0, 2.0, 3.0, 2.0, 4.0, 6.0]);
                assert_eq!(values(&views[1]), [4.0, 8.0, 12.0]);
                assert_eq!(values(&views[2]), [11.0, 13.0]);
            }
        }
    }

    #[test]
    fn a_parameter_without_a_gradient_has_zeros_and_so_has_padding() {
        let mut gradient = dirty(Kind::Float);
        gradient.add(&[(1, Tensor::from_slice(&[1f32, 1.0, 1.0]))]).unwrap();
        let flat = gradient.complete().unwrap();
        assert_eq!((flat.numel(), values(&flat.sum(Kind::Float))), (48, vec![3.0]));
    }

    #[test]
    fn what_a_pass_has_made_goes_to_the_step_and_what_follows_too() {
        let units: Rc<[FlatUnit]> = Rc::new([unit()]);
        let step = Rc::new(RefCell::new(UnitGradients::new(&units, Kind::Float)));
        for _ in 0..2 {
            let pass = Sink::new(&units, Kind::Float);
            let param = pass.of(ParamPlace { unit: 0, index: 2 });
            let one = Tensor::from_slice(&[1f32, 1.0]);
            let add = || param.with(|gradient, i| gradient.add(&[(i, one.shallow_clone())]));
            add().unwrap();
            pass.turn_to(&step).unwrap();
            add().unwrap();
        }
        let flat = step.borrow_mut().take(0).unwrap().complete().unwrap();
        assert_eq!(values(&units[0].views(&flat)[2]), [4.0, 4.0]);
        assert!(step.borrow_mut().take(0).is_none());
    }
}
