//! The gradients of the parameter units: flat buffers that exist from a unit's first gradient to
//! the optimizer step, so that they take no memory while activations do.

use crate::{
    bridge::memory,
    error::Result,
    model::FlatUnit,
    tensor::{Kind, Tensor, no_grad},
};

/// A buffer for each unit that has a gradient.
#[derive(Debug)]
pub(super) struct Gradients {
    buffers: Vec<Option<Tensor>>,
    kind: Kind,
}

impl Gradients {
    /// No gradient yet for this many units; they will add up in the format `kind`.
    pub(super) fn new(units: usize, kind: Kind) -> Self {
        Self { buffers: (0..units).map(|_| None).collect(), kind }
    }

    /// Adds the gradients of the first parameters of unit `i`, in order; each is freed before the
    /// next is asked for.
    pub(super) fn add(
        &mut self,
        unit: &FlatUnit,
        i: usize,
        grads: impl IntoIterator<Item = Tensor>,
    ) -> Result<()> {
        no_grad(|| match &self.buffers[i] {
            Some(flat) => {
                for (mut view, grad) in unit.views(flat).into_iter().zip(grads) {
                    let _ = view.f_add_(&grad)?;
                }
                Ok(())
            }
            None => {
                let flat = zeros(unit, self.kind)?;
                for (mut view, grad) in unit.views(&flat).into_iter().zip(grads) {
                    view.f_copy_(&grad)?;
                }
                self.buffers[i] = Some(flat);
                Ok(())
            }
        })
    }

    /// Adds a whole buffer to unit `i`, which may become the unit's own.
    pub(super) fn add_flat(&mut self, i: usize, buffer: Tensor) -> Result<()> {
        match &mut self.buffers[i] {
            Some(flat) => {
                let _ = no_grad(|| flat.f_add_(&buffer))?;
            }
            none => *none = Some(buffer),
        }
        Ok(())
    }

    /// The parameters' parts of the buffer of unit `i`, which is made if there is none.
    pub(super) fn views(&mut self, unit: &FlatUnit, i: usize) -> Result<Vec<Tensor>> {
        let flat = match &mut self.buffers[i] {
            Some(flat) => flat,
            none => none.insert(zeros(unit, self.kind)?),
        };
        Ok(unit.views(flat))
    }

    /// All buffers, each of them there; none is left here.
    pub(super) fn take(&mut self, units: &[FlatUnit]) -> Result<Vec<Tensor>> {
        let kind = self.kind;
        let buffer = |(unit, grad): (&FlatUnit, &mut Option<Tensor>)| match grad.take() {
            Some(flat) => Ok(flat),
            None => zeros(unit, kind),
        };
        units.iter().zip(&mut self.buffers).map(buffer).collect()
    }

    /// Drops what has been added.
    pub(super) fn clear(&mut self) {
        self.buffers.iter_mut().for_each(|grad| *grad = None);
    }
}

/// A buffer of zeros laid out as `unit` in the format `kind`, counted as gradient.
pub(super) fn zeros(unit: &FlatUnit, kind: Kind) -> Result<Tensor> {
    let _counting = memory::count_as(memory::Kind::Gradients)?;
    unit.zeros_of(kind)
}
