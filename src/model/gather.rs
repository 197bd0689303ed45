//! Gathering the parameters of a layer before it runs, and of a whole model for good.

use std::{ops::Range, rc::Rc};

use super::{Direction, FlatUnit, Model, ParameterStore, Params, Pipeline, Sink};
use crate::{
    error::Result,
    tensor::{check_memory, no_grad},
};

/// Units whose parameters are there.
pub struct Gathered<'a> {
    model: &'a Model,
    store: Option<Rc<dyn ParameterStore>>,
    units: Vec<usize>,
    /// Whether quantized units stay codes that rows are multiplied with.
    in_codes: bool,
}

impl Model {
    /// Gathers the parameters of layer `i` in a pass in this direction. Every rank must gather all
    /// layers of a pass in its order, or what was prefetched stays there until the next pass.
    pub fn gather(&self, i: usize, direction: Direction) -> Result<Gathered<'_>> {
        self.gather_layer(i, direction, false)
    }

    /// The same in a forward pass of few rows, without gradients: codes are not dequantized where rows
    /// can be multiplied with them.
    pub(super) fn gather_for_rows(&self, i: usize) -> Result<Gathered<'_>> {
        self.gather_layer(i, Direction::Forward, true)
    }

    fn gather_layer(&self, i: usize, direction: Direction, in_codes: bool) -> Result<Gathered<'_>> {
        let following = || self.reads_after(i, direction).collect();
        self.gather_units(self.reads(i, direction), following, in_codes)
    }

    /// The units that layer `i` reads in a pass of this direction.
    pub fn reads(&self, i: usize, direction: Direction) -> &[usize] {
        let layer = &self.layers()[i];
        let reads = direction == Direction::Forward || layer.layer.backward_reads_params();
        if reads { &layer.units } else { &[] }
    }

    /// The units that the layers after layer `i` read in a pass of this direction, in its order.
    pub fn reads_after(&self, i: usize, direction: Direction) -> impl Iterator<Item = usize> {
        let (above, below) = match direction {
            Direction::Forward => (i + 1..self.layers().len(), 0..0),
            Direction::Backward => (0..0, self.lowest_backward()..i),
        };
        let layers = above.chain(below.rev());
        layers.flat_map(move |layer| self.reads(layer, direction)).copied()
    }

    /// Gathers unit `i` alone, outside of a pass. Every rank must call it.
    pub fn gather_unit(&self, i: usize) -> Result<Gathered<'_>> {
        self.gather_units(&[i], Vec::new, false)
    }

    fn gather_units(
        &self,
        units: &[usize],
        following: impl FnOnce() -> Vec<usize>,
        in_codes: bool,
    ) -> Result<Gathered<'_>> {
        let store = self.store.borrow().clone();
        let following = store.as_ref().map(|_| following()).unwrap_or_default();
        if self.initializer.borrow().is_some() {
            self.make_whole()?;
        }
        let mut gathered = Gathered { model: self, store, units: Vec::new(), in_codes };
        for (at, &unit) in units.iter().enumerate() {
            if let Some(store) = &gathered.store {
                let then: Vec<usize> = units[at + 1..].iter().chain(&following).copied().collect();
                store.gather(self.units(), unit, &then)?;
            }
            gathered.units.push(unit);
            if gathered.dequantizes(unit) {
                no_grad(|| self.units()[unit].begin_use())?;
            }
        }
        Ok(gathered)
    }

    /// Takes part in these layers, of those of the whole model, of a forward pass that another rank
    /// makes.
    pub fn participate(&self, layers: Range<usize>) -> Result<()> {
        let here = self.layers().iter().enumerate();
        let mut here = here.filter(|(_, layer)| layers.contains(&layer.number));
        here.try_for_each(|(i, _)| self.gather(i, Direction::Forward).map(drop))
    }

    /// Whether parameters are on other ranks too, so that all ranks must run the layers together.
    pub fn is_sharded(&self) -> bool {
        self.store.borrow().is_some() || self.pipeline.borrow().is_some()
    }

    /// Whether `flag` is set on any of the ranks that run the layers together; without such a rank
    /// goes its own way.
    pub fn any(&self, flag: bool) -> Result<bool> {
        if let Some(pipeline) = self.pipeline() {
            return pipeline.any(flag);
        }
        self.store.borrow().as_ref().map_or(Ok(flag), |store| store.any(flag))
    }

    /// Brings all parameters here for good: their first values, or from other ranks, which all must
    /// call it then.
    pub fn make_whole(&self) -> Result<()> {
        let absent = self.units().iter().filter(|unit| !unit.is_here());
        let bytes = absent.map(FlatUnit::bytes).sum();
        check_memory(self.device, bytes, "the model")?;
        (0..self.units().len()).try_for_each(|i| self.materialize(i))?;
        self.set_store(None);
        Ok(())
    }

    /// Brings the parameters of unit `i` here for good, as [`Model::make_whole`] does;
    /// [`Model::set_store`] follows when all units are there.
    pub fn materialize(&self, i: usize) -> Result<()> {
        if let Some(initializer) = &*self.initializer.borrow() {
            return self.fill(initializer, &self.units()[i], self.unit_part(i).as_ref());
        }
        let store = self.store.borrow().clone();
        store.map_or(Ok(()), |store| store.gather(self.units(), i, &[]))
    }

    /// Whether the first values of parameters are those that a recipe gave on this rank, and are still
    /// to be used.
    pub fn starts_from_values(&self) -> bool {
        self.initializer.borrow().as_ref().is_some_and(|initializer| initializer.is_of_values())
    }

    /// As [`Model::any`] where the ranks of a pipeline wait for each other within a pass; else a rank
    /// decides for itself.
    pub fn any_stage(&self, flag: bool) -> Result<bool> {
        self.pipeline().map_or(Ok(flag), |pipeline| pipeline.any(flag))
    }

    /// The way to the other stages, if there are any.
    pub(super) fn pipeline(&self) -> Option<Rc<dyn Pipeline>> {
        self.pipeline.borrow().clone()
    }

    /// Sets the way to the other stages of a model that was [cut](Model::cut).
    pub fn set_pipeline(&self, pipeline: Rc<dyn Pipeline>) {
        *self.pipeline.borrow_mut() = Some(pipeline);
    }

    /// Sets where the parameters are from now on while they are not used; `None` for here.
    pub fn set_store(&self, store: Option<Rc<dyn ParameterStore>>) {
        *self.initializer.borrow_mut() = None;
        *self.store.borrow_mut() = store;
    }
}

impl Gathered<'_> {
    fn dequantizes(&self, unit: usize) -> bool {
        !(self.in_codes && self.model.units()[unit].multiplies_codes())
    }

    /// The parameters of layer `i`, which was gathered; with a `sink` operations add the gradients that
    /// they make by hand there.
    pub fn params<'a>(&'a self, i: usize, sink: Option<&'a Sink>) -> Params<'a> {
        let params = Params::new(self.model.units(), &self.model.layers()[i].places, sink);
        params
            .without_adapter(self.model.is_adapter_off.get())
            .shared_by(self.model.tensor_parallel())
    }
}

impl Drop for Gathered<'_> {
    fn drop(&mut self) {
        for &unit in &self.units {
            if self.dequantizes(unit) {
                self.model.units()[unit].end_use();
            }
            if let Some(store) = &self.store {
                store.release(self.model.units(), unit);
            }
        }
    }
}
