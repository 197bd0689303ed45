//! The gradient of a unit: one flat tensor, to which each parameter's gradient is added as it is made.
//!
//! The first gradient of a parameter is written over what the memory held, so that nothing is cleared
//! to be added to. An operation whose gradient is written by hand (`linear.rs`) reaches the tensor
//! through a [`Sink`], and needs no tensor of its own for it.

use std::{cell::RefCell, rc::Rc};

use super::FlatUnit;
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

/// Where the operations of a layer find the gradient of its unit: whoever goes back through the layer
/// lends it for that time.
#[derive(Debug, Clone, Default)]
pub struct Sink(Rc<RefCell<Option<UnitGradient>>>);

impl UnitGradient {
    /// One without any gradient yet, laid out as `unit`, in the format `kind`.
    ///
    /// # Errors
    /// Memory is exhausted.
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
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn add_product(&mut self, i: usize, (a, b): (&Tensor, &Tensor), scale: f64) -> Result<()> {
        let beta = if self.written[i] { 1.0 } else { 0.0 };
        product(&self.views[i], (a, b), beta, scale)?;
        self.written[i] = true;
        Ok(())
    }

    /// Adds the sum of `grad` over its first dimension to the gradient of parameter `i`, to its first
    /// rows if it has more.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn add_rows(&mut self, i: usize, grad: &Tensor) -> Result<()> {
        let (rows, kind) = ([0i64].as_slice(), self.flat.kind());
        let (len, all) = (grad.size()[1], self.views[i].size()[0]);
        no_grad(|| {
            if len < all {
                let view = self.open(i)?.f_narrow(0, 0, len)?;
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

    /// Adds gradients of parameters by number, each named once, and those that wait.
    ///
    /// # Errors
    /// Memory is exhausted.
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
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn open(&mut self, i: usize) -> Result<&Tensor> {
        self.add(&[])?;
        if !self.written[i] {
            zero_all([&self.views[i]])?;
            self.written[i] = true;
        }
        Ok(&self.views[i])
    }

    /// Adds what `other`, laid out alike, holds.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn merge(&mut self, mut other: Self) -> Result<()> {
        other.add(&[])?;
        let held = other.views.into_iter().enumerate().filter(|(i, _)| other.written[*i]);
        self.add(&held.collect::<Vec<_>>())
    }

    /// The flat gradient, 0 for parameters that got none.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn complete(mut self) -> Result<Tensor> {
        self.add(&[])?;
        let none = self.views.iter().zip(&self.written).filter(|(_, written)| !**written);
        zero_all(none.map(|(view, _)| view))?;
        Ok(self.flat)
    }
}

impl Sink {
    /// Lends the gradient to the layer's operations.
    pub fn lend(&self, gradient: UnitGradient) {
        *self.0.borrow_mut() = Some(gradient);
    }

    /// Takes it back.
    ///
    /// # Errors
    /// [`Code::Internal`] if it was not lent.
    pub fn take_back(&self) -> Result<UnitGradient> {
        self.0.take().ok_or_else(not_lent)
    }

    /// Adds to the gradient while it is lent.
    ///
    /// # Errors
    /// [`Code::Internal`] outside of that time; those of `add`.
    pub fn with(&self, add: impl FnOnce(&mut UnitGradient) -> Result<()>) -> Result<()> {
        add(self.0.borrow_mut().as_mut().ok_or_else(not_lent)?)
    }
}

fn not_lent() -> Error {
    Error::new(Code::Internal, "a layer has no gradient to add to")
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
                    gradient.add_rows(1, &Tensor::cat(&[&y, &y], 0)).unwrap();
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
    fn a_layer_adds_while_the_gradient_is_lent() {
        let sink = Sink::default();
        assert_eq!(sink.with(|_| Ok(())).unwrap_err().code(), Code::Internal);
        sink.lend(dirty(Kind::Float));
        sink.clone().with(|gradient| gradient.open(1).map(drop)).unwrap();
        assert_eq!(sink.take_back().unwrap().written, [false, true, false]);
        assert!(sink.take_back().is_err());
    }
}
