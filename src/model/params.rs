//! The parameters of a layer: how a family names them, and how the layer's modules find them.
//!
//! A [`LayerBuilder`] collects the parameters that a layer owns, which become one unit, and the names
//! of other layers' parameters that it borrows. A module keeps a [`ParamId`] for each of its
//! parameters. When the layer runs, [`Params`] has the tensors behind the ids.

use super::{
    unit::{FlatUnit, Init, ParamPlace, ParamSpec},
    unit_gradient::{ParamSink, Sink},
};
use crate::tensor::Tensor;

/// A parameter among those of its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParamId(Source);

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

/// The places of a layer's parameters among the units of its model.
#[derive(Debug, Clone, Default)]
pub struct Places {
    pub(super) own: Vec<ParamPlace>,
    pub(super) borrowed: Vec<ParamPlace>,
}

impl Places {
    /// All of them, the layer's own first.
    pub fn all(&self) -> impl Iterator<Item = ParamPlace> {
        self.own.iter().chain(&self.borrowed).copied()
    }

    /// Those of a layer that owns unit `unit` alone.
    #[cfg(test)]
    pub(super) fn of_unit(units: &[FlatUnit], unit: usize) -> Self {
        let own = (0..units[unit].params().len()).map(|index| ParamPlace { unit, index });
        Self { own: own.collect(), ..Self::default() }
    }
}

/// How an operation is differentiated.
#[derive(Debug)]
pub enum Backward {
    /// By autograd.
    Autograd,
    /// By hand, and the parameter's gradient is added here; `None` for a frozen one.
    ByHand(Option<ParamSink>),
}

/// The tensors of a layer's parameters while it runs.
#[derive(Debug, Clone, Copy)]
pub struct Params<'a> {
    units: &'a [FlatUnit],
    places: &'a Places,
    sink: Option<&'a Sink>,
}

impl<'a> Params<'a> {
    /// The parameters at `places`. With a `sink` operations add the gradients that they make by hand
    /// there; without one autograd makes all.
    pub(super) fn new(units: &'a [FlatUnit], places: &'a Places, sink: Option<&'a Sink>) -> Self {
        Self { units, places, sink }
    }

    /// The tensor of a parameter.
    pub fn tensor(&self, id: ParamId) -> &'a Tensor {
        self.at(self.place(id))
    }

    /// Where operations add the parameter's gradient; `None` where autograd makes it, and for a frozen
    /// parameter, which has none.
    pub fn sink(&self, id: ParamId) -> Option<ParamSink> {
        let place = self.place(id);
        self.sink.filter(|_| self.units[place.unit].is_trainable()).map(|sink| sink.of(place))
    }

    /// How an operation with the parameter is differentiated.
    pub fn backward(&self, id: ParamId) -> Backward {
        match (self.has_sink(), self.sink(id)) {
            (false, _) => Backward::Autograd,
            (true, sink) => Backward::ByHand(sink),
        }
    }

    /// Whether operations make the gradients of parameters by hand.
    pub fn has_sink(&self) -> bool {
        self.sink.is_some()
    }

    /// All tensors of the layer's own.
    pub fn own(&self) -> Vec<Tensor> {
        let tensor = |place: &ParamPlace| self.at(*place).shallow_clone();
        self.places.own.iter().map(tensor).collect()
    }

    fn at(&self, ParamPlace { unit, index }: ParamPlace) -> &'a Tensor {
        &self.units[unit].params()[index]
    }

    fn place(&self, ParamId(source): ParamId) -> ParamPlace {
        match source {
            Source::Own(i) => self.places.own[i],
            Source::Borrowed(i) => self.places.borrowed[i],
        }
    }
}
