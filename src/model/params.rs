//! The parameters of a layer: how a family names them, and how the layer's modules find them.
//!
//! A [`LayerBuilder`] collects the parameters that a layer owns, which become one unit, and the names
//! of other layers' parameters that it borrows. A module keeps a [`ParamId`] for each of its
//! parameters. When the layer runs, [`Params`] has the tensors behind the ids.

use std::rc::Rc;

use super::{
    adapters::{Attached, Lora, Part},
    codes::Codes,
    param_id::ParamId,
    param_spec::{Init, ParamPlace, ParamSpec},
    unit::FlatUnit,
    unit_gradient::{ParamSink, Sink},
};
use crate::{
    error::Result,
    tensor::Tensor,
    tensor_parallel::{TensorParallel, VocabularyPart},
};

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

    /// Adds a matrix that has a row for each token.
    pub(super) fn add_of_tokens(
        &mut self,
        name: &str,
        (tokens, width): (i64, i64),
        init: Init,
    ) -> ParamId {
        let name = self.full_name(name);
        let spec = ParamSpec::new(name, &[tokens, width], init);
        self.push(ParamSpec { is_of_tokens: true, ..spec })
    }

    /// Notes that the weight of a linear layer is stored `[in, out]`.
    pub(super) fn is_by_inputs(&mut self, id: ParamId) {
        if let ParamId::Own(index) = id {
            self.params[index].is_by_inputs = true;
        }
    }

    /// Borrows the parameter of another layer by its full name: tied weights.
    pub(super) fn borrow(&mut self, name: &str) -> ParamId {
        self.borrowed.push(name.to_owned());
        ParamId::Borrowed(self.borrowed.len() - 1)
    }

    /// The parameters of the layer's own, and the names of borrowed ones.
    pub(super) fn into_parts(self) -> (Vec<ParamSpec>, Vec<String>) {
        (self.params, self.borrowed)
    }

    fn push(&mut self, spec: ParamSpec) -> ParamId {
        self.params.push(spec);
        ParamId::Own(self.params.len() - 1)
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
    /// Those of an adapter.
    pub(super) attached: Vec<Attached>,
}

impl Places {
    /// All of them, the layer's own first.
    pub fn all(&self) -> impl Iterator<Item = ParamPlace> {
        let attached = self.attached.iter().flat_map(Attached::params);
        self.own.iter().chain(&self.borrowed).chain(attached).copied()
    }

    /// Whether an adapter draws random numbers.
    pub(super) fn draws(&self) -> bool {
        let drops = |a: &Attached| matches!(&a.part, Part::Lora(lora) if lora.dropout > 0.0);
        self.attached.iter().any(drops)
    }

    /// The place of a parameter, without an adapter.
    pub(super) fn of(&self, id: ParamId) -> ParamPlace {
        match id {
            ParamId::Own(i) => self.own[i],
            ParamId::Borrowed(i) => self.borrowed[i],
        }
    }

    /// The place of a parameter of the layer's own.
    pub(super) fn own_place(&self, id: ParamId) -> Option<ParamPlace> {
        match id {
            ParamId::Own(i) => self.own.get(i).copied(),
            ParamId::Borrowed(_) => None,
        }
    }

    /// The same parameters in other places.
    pub(super) fn map(&self, moved: &impl Fn(&ParamPlace) -> ParamPlace) -> Self {
        Self {
            own: self.own.iter().map(moved).collect(),
            borrowed: self.borrowed.iter().map(moved).collect(),
            attached: self.attached.iter().map(|attached| attached.map(moved)).collect(),
        }
    }

    /// Those of a layer that owns unit `unit` alone.
    #[cfg(test)]
    pub(super) fn of_unit(units: &[FlatUnit], unit: usize) -> Self {
        let own = (0..units[unit].params().len()).map(|index| ParamPlace { unit, index });
        Self { own: own.collect(), ..Self::default() }
    }
}

/// A parameter of an adapter: its tensor, and where its gradient is added by hand.
#[derive(Debug, Clone)]
pub(super) struct LoraParam {
    pub(super) tensor: Rc<Tensor>,
    pub(super) sink: Option<ParamSink>,
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
    has_adapter: bool,
    tp: Option<&'a TensorParallel>,
    /// Whether the pass is one of a training, in which a rank may have a part of the tokens.
    trains: bool,
}

impl<'a> Params<'a> {
    /// The parameters at `places`. With a `sink` operations add the gradients that they make by hand
    /// there; without one autograd makes all.
    pub(super) fn new(units: &'a [FlatUnit], places: &'a Places, sink: Option<&'a Sink>) -> Self {
        Self { units, places, sink, has_adapter: true, tp: None, trains: false }
    }

    /// The same without an adapter, if that `is_off`.
    pub(super) fn without_adapter(self, is_off: bool) -> Self {
        Self { has_adapter: self.has_adapter && !is_off, ..self }
    }

    /// What an adapter adds to the product with a matrix.
    pub(super) fn lora(&self, id: ParamId) -> Option<Lora<LoraParam>> {
        let attached = self.attached_to(id)?.map(|&place| LoraParam {
            tensor: Rc::new(self.at(place).shallow_clone()),
            sink: self.sink_at(place),
        });
        match attached.part {
            Part::Lora(lora) => Some(lora),
            Part::Saved(_) => None,
        }
    }

    fn attached_to(&self, id: ParamId) -> Option<&'a Attached> {
        let attached = self.has_adapter.then_some(&self.places.attached)?;
        attached.iter().find(|attached| attached.target == id)
    }

    /// The same, where ranks share the layer.
    pub(super) fn shared_by(self, tp: Option<&'a TensorParallel>) -> Self {
        Self { tp, ..self }
    }

    /// This rank's number among those that share the layer, and how many they are.
    pub(super) fn tp_place(&self) -> (i64, i64) {
        self.tp.map_or((0, 1), |tp| (tp.rank(), tp.size()))
    }

    /// The same in a pass of a training.
    pub fn of_training(self) -> Self {
        Self { trains: true, ..self }
    }

    /// Enters a region of the layer that the ranks divide: the result is what all of them have.
    pub(super) fn enter(&self, x: &Tensor) -> Result<Tensor> {
        match self.tp {
            Some(tp) => tp.enter(x, self.has_part_of_tokens()),
            None => Ok(x.shallow_clone()),
        }
    }

    /// The same for the loss, which no region leaves.
    pub(super) fn enter_loss(&self, x: &Tensor) -> Result<Tensor> {
        match self.tp {
            Some(tp) => tp.shared(x, self.has_part_of_tokens()),
            None => Ok(x.shallow_clone()),
        }
    }

    /// Leaves a region with the sum over the ranks.
    pub(super) fn leave(&self, y: Tensor) -> Result<Tensor> {
        match self.tp {
            Some(tp) => tp.leave(&y, self.has_part_of_tokens()),
            None => Ok(y),
        }
    }

    /// The sum over the ranks of `y`, of which each has made a part outside of a region.
    pub(super) fn sum(&self, y: Tensor) -> Result<Tensor> {
        match self.tp {
            Some(tp) => tp.sum(&y, self.has_part_of_tokens()),
            None => Ok(y),
        }
    }

    /// Whether this rank has a part of the tokens between two regions.
    fn has_part_of_tokens(&self) -> bool {
        self.trains && self.tp.is_some_and(|tp| tp.sharing().sequence_parallel)
    }

    /// The place in the rows of the first of `tokens` tokens that this rank has.
    pub(super) fn first_token(&self, tokens: i64) -> i64 {
        self.tp.filter(|_| self.has_part_of_tokens()).map_or(0, |tp| tp.first_token(tokens))
    }

    /// This rank's tokens of `all`, along dimension 1, of which it has `tokens`.
    pub(super) fn own_tokens(&self, all: &Tensor, tokens: i64) -> Result<Tensor> {
        Ok(all.f_narrow(1, self.first_token(tokens), tokens)?)
    }

    /// The tokens of whole rows, of which this rank has `tokens`.
    pub(super) fn all_tokens(&self, tokens: i64) -> i64 {
        if self.has_part_of_tokens() { tokens * self.tp_place().1 } else { tokens }
    }

    /// This rank's part of a vocabulary of `rows` tokens, where ranks divide it.
    pub(super) fn vocabulary(&self, rows: i64) -> Option<VocabularyPart> {
        self.tp.map(|tp| tp.vocabulary(rows))
    }

    /// Whether ranks share the layer.
    pub(super) fn is_shared(&self) -> bool {
        self.tp.is_some()
    }

    /// The codes of a parameter, and its number among them, where its values are not here.
    pub(super) fn codes(&self, id: ParamId) -> Option<(Rc<Codes>, usize)> {
        let ParamPlace { unit, index } = self.place(id);
        Some((Rc::clone(self.units[unit].codes_alone()?), index))
    }

    /// The description of a parameter.
    pub(super) fn spec(&self, id: ParamId) -> &'a ParamSpec {
        let ParamPlace { unit, index } = self.place(id);
        &self.units[unit].specs()[index]
    }

    /// The tensor of a parameter.
    pub fn tensor(&self, id: ParamId) -> &'a Tensor {
        self.at(self.place(id))
    }

    /// Where operations add the parameter's gradient; `None` where autograd makes it, and for a frozen
    /// parameter, which has none.
    pub fn sink(&self, id: ParamId) -> Option<ParamSink> {
        self.sink_at(self.place(id))
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

    /// All tensors of the layer, without an adapter's.
    pub fn tensors(&self) -> Vec<Tensor> {
        let tensor = |place: &ParamPlace| self.at(*place).shallow_clone();
        self.places.own.iter().chain(&self.places.borrowed).map(tensor).collect()
    }

    fn sink_at(&self, place: ParamPlace) -> Option<ParamSink> {
        self.sink.filter(|_| self.units[place.unit].is_trainable()).map(|sink| sink.of(place))
    }

    fn at(&self, ParamPlace { unit, index }: ParamPlace) -> &'a Tensor {
        &self.units[unit].params()[index]
    }

    fn place(&self, id: ParamId) -> ParamPlace {
        match self.attached_to(id).map(|attached| &attached.part) {
            Some(Part::Saved(place)) => *place,
            _ => self.places.of(id),
        }
    }
}
