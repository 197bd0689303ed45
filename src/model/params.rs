//! The parameters of a layer: how a family names them, and how the layer's modules find them.
//!
//! A [`LayerBuilder`] collects the parameters that a layer owns, which become one unit, and the names
//! of other layers' parameters that it borrows. A module keeps a [`ParamId`] for each of its
//! parameters. When the layer runs, [`Params`] has the tensors behind the ids.

use super::{
    tensor_parallel::TensorParallel,
    unit::{FlatUnit, Init, ParamPlace, ParamSpec},
    unit_gradient::{ParamSink, Sink},
};
use crate::{error::Result, tensor::Tensor};

/// A parameter among those of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamId(Source);

impl ParamId {
    /// Its number among the layer's own parameters, if it is one.
    pub(super) fn own(self) -> Option<usize> {
        match self.0 {
            Source::Own(index) => Some(index),
            Source::Borrowed(_) => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Own(usize),
    Borrowed(usize),
}

/// Collects the parameters of a layer.
#[derive(Debug, Default)]
pub(super) struct LayerBuilder {
    prefix: String,
    params: Vec<ParamSpec>,
    borrowed: Vec<String>,
}

impl LayerBuilder {
    /// For a layer whose parameters' names begin with `prefix` and a dot.
    pub(super) fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), ..Self::default() }
    }

    /// Adds a parameter of the layer's own.
    pub(super) fn add(&mut self, name: &str, shape: &[i64], init: Init) -> ParamId {
        let name = self.full_name(name);
        self.push(ParamSpec::new(name, shape, init))
    }

    /// Adds the weight of a linear layer between embedding and head, which Muon is for.
    pub(super) fn add_matrix(
        &mut self,
        name: &str,
        shape: &[i64],
        (fan_in, fan_out): (i64, i64),
        init: Init,
    ) -> ParamId {
        let name = self.full_name(name);
        self.push(ParamSpec::new(name, shape, init).linear(fan_in, fan_out))
    }

    /// Borrows the parameter of another layer by its full name: tied weights.
    pub(super) fn borrow(&mut self, name: &str) -> ParamId {
        self.borrowed.push(name.to_owned());
        ParamId(Source::Borrowed(self.borrowed.len() - 1))
    }

    /// The parameters of the layer's own, and the names of borrowed ones.
    pub(super) fn into_parts(self) -> (Vec<ParamSpec>, Vec<String>) {
        (self.params, self.borrowed)
    }

    fn push(&mut self, spec: ParamSpec) -> ParamId {
        self.params.push(spec);
        ParamId(Source::Own(self.params.len() - 1))
    }

    fn full_name(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }
}

/// The tensors of a layer's parameters while it runs.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    units: &'a [FlatUnit],
    own: Option<usize>,
    borrowed: &'a [ParamPlace],
    sink: Option<&'a Sink>,
    tp: Option<&'a TensorParallel>,
}

impl<'a> Params<'a> {
    /// The parameters of unit `own`, if the layer has one, and those at `borrowed`. With a `sink`
    /// operations add the gradients that they make by hand there; without one autograd makes all.
    pub(super) fn new(
        units: &'a [FlatUnit],
        own: Option<usize>,
        borrowed: &'a [ParamPlace],
        sink: Option<&'a Sink>,
    ) -> Self {
        Self { units, own, borrowed, sink, tp: None }
    }

    /// The same, where ranks share the layer.
    pub(super) fn shared_by(self, tp: Option<&'a TensorParallel>) -> Self {
        Self { tp, ..self }
    }

    /// This rank's number among those that share the layer, and how many they are.
    pub(super) fn place(&self) -> (i64, i64) {
        self.tp.map_or((0, 1), |tp| (tp.rank(), tp.size()))
    }

    /// Enters a region of the layer that the ranks divide, with what all of them have.
    pub(super) fn enter(&self, x: &Tensor) -> Result<Tensor> {
        self.tp.map_or_else(|| Ok(x.shallow_clone()), |tp| tp.enter(x))
    }

    /// Leaves a region with the sum over the ranks.
    pub(super) fn leave(&self, y: Tensor) -> Result<Tensor> {
        match self.tp {
            Some(tp) => tp.leave(&y),
            None => Ok(y),
        }
    }

    /// Whether ranks share the layer.
    pub(super) fn is_shared(&self) -> bool {
        self.tp.is_some()
    }

    /// The tensor of a parameter.
    pub fn tensor(&self, id: ParamId) -> &'a Tensor {
        let ParamPlace { unit, index } = self.place_of(id);
        &self.units[unit].params()[index]
    }

    /// Where operations add the parameter's gradient; `None` where autograd makes it.
    pub fn sink(&self, id: ParamId) -> Option<ParamSink> {
        self.sink.map(|sink| sink.of(self.place_of(id)))
    }

    /// All tensors of the layer's own unit.
    pub fn own(&self) -> &'a [Tensor] {
        self.own.map_or(&[], |unit| self.units[unit].params())
    }

    fn place_of(&self, ParamId(source): ParamId) -> ParamPlace {
        match source {
            // A layer that added a parameter has a unit.
            Source::Own(index) => ParamPlace { unit: self.own.unwrap_or_default(), index },
            Source::Borrowed(i) => self.borrowed[i],
        }
    }
}
