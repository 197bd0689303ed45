//! The parameters that are trained, and those that are frozen.
//!
//! A unit is trained as a whole or not at all. A layer of which some parameters are frozen has two
//! units, so that gradients, master weights and an optimizer's state exist for the trained ones alone.
//! Units that are trained come first, and whoever keeps something for each of them counts from 0.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{
    FlatUnit, Model, ParamPlace, ParamSpec,
    adapters::Attached,
    architecture::ModelLayer,
    codes::{Codes, is_quantized},
    params::Places,
};
use crate::{
    config::Quantization,
    error::{Code, Error, Result},
    quantize::Quantizer,
    tensor::no_grad,
};

/// Parameters that an adapter adds to each layer, and what they are for.
pub(super) type Added = BTreeMap<usize, (Vec<ParamSpec>, Vec<Attached<String>>)>;

/// How the parameters of a model are put into units.
pub(super) struct Regroup<'a> {
    /// Parameters that are not there yet.
    pub(super) added: Added,
    /// Whether those of an adapter go.
    pub(super) drops_adapter: bool,
    /// Whether units that are here are copied, not shared.
    pub(super) copies: bool,
    /// The way in which the matrices of blocks are kept.
    pub(super) quantizer: Option<Quantizer>,
    /// Whether a parameter of this name is trained.
    pub(super) is_trained: &'a dyn Fn(&str) -> bool,
}

/// The parameters of a unit, and whether it is trained.
struct Group {
    specs: Vec<ParamSpec>,
    is_trained: bool,
    is_quantized: bool,
}

impl Model {
    /// The first layer of the whole model that uses a parameter that is trained.
    pub fn lowest_trainable(&self) -> Option<usize> {
        self.lowest_trainable
    }

    /// The first of the layers of this stage that backward passes come to; their number where they come
    /// to none.
    pub fn lowest_backward(&self) -> usize {
        let lowest = self.lowest_trainable().unwrap_or(0);
        self.layers().partition_point(|layer| layer.number < lowest)
    }

    /// Whether the input of layer `number` of the whole model has a gradient: there is something to be
    /// trained below.
    pub fn input_has_gradient(&self, number: usize) -> bool {
        self.lowest_trainable().is_some_and(|lowest| number > lowest)
    }

    /// The same model, of which the parameters are trained that `is_trained` names, and the others
    /// frozen. Where it changes nothing it is this one.
    pub fn trained(self: &Rc<Self>, is_trained: impl Fn(&str) -> bool) -> Result<Rc<Self>> {
        let is_so = |unit: &FlatUnit| unit.names().all(|n| is_trained(n) == unit.is_trainable());
        if self.units.iter().all(is_so) {
            return Ok(Rc::clone(self));
        }
        let regroup = Regroup {
            added: BTreeMap::new(),
            drops_adapter: false,
            copies: false,
            quantizer: self.quantizer.clone(),
            is_trained: &is_trained,
        };
        self.rebuilt(regroup).map(Rc::new)
    }

    /// The same model, which has no values yet, with the matrices of its blocks quantized.
    pub fn quantized(self, quantization: Quantization) -> Result<Self> {
        self.rebuilt(Regroup {
            added: BTreeMap::new(),
            drops_adapter: false,
            copies: false,
            quantizer: Some(Quantizer::new(quantization, self.device)?),
            is_trained: &|_| false,
        })
    }

    /// The same model with its parameters in other units.
    pub(super) fn rebuilt(&self, regroup: Regroup<'_>) -> Result<Self> {
        self.check_uncut()?;
        if self.is_sharded() {
            self.make_whole()?;
        }
        let groups = self.groups(&regroup)?;
        let known: BTreeMap<Vec<&str>, &FlatUnit> =
            self.units.iter().map(|unit| (unit.names().collect(), unit)).collect();
        let unit = |group: &Group| {
            let names: Vec<&str> = group.specs.iter().map(|spec| spec.name.as_str()).collect();
            let unit = match known.get(&names) {
                Some(unit)
                    if unit.is_here()
                        && !regroup.copies
                        && unit.quantization().is_some() == group.is_quantized =>
                {
                    unit.sharing()?
                }
                _ => self.part(group, regroup.quantizer.as_ref())?,
            };
            Ok(unit.trained(group.is_trained))
        };
        let units = groups.iter().map(unit).collect::<Result<Vec<_>>>()?;
        let layers = self.layers_over(&units, &regroup);
        let mut model = Self::with(self.facts.clone(), layers, units, self.device);
        *model.initializer.borrow_mut() = self.initializer.borrow().clone();
        model.companions = self.companions.clone();
        model.quantizer = regroup.quantizer.clone();
        model.is_outline = self.is_outline;
        model.adapter = self.adapter.clone().filter(|_| !regroup.drops_adapter);
        *model.sparse.borrow_mut() = self.sparse.borrow().clone();
        model.tiled_mlp.set(self.tiled_mlp.get());
        model.origin = self.origin.clone();
        model.origin_record = self.origin_record.clone();
        Ok(model)
    }

    /// The parameters of each layer by whether they are trained; an adapter's are by themselves.
    fn groups(&self, regroup: &Regroup<'_>) -> Result<Vec<Group>> {
        let (mut trained, mut frozen) = (Vec::new(), Vec::new());
        for (i, layer) in self.layers.iter().enumerate() {
            let specs = |places: &mut dyn Iterator<Item = ParamPlace>| -> Vec<ParamSpec> {
                places.map(|place| self.spec(place).clone()).collect()
            };
            let own = specs(&mut layer.places.own.iter().copied());
            let mut attached = layer.places.attached.iter().flat_map(Attached::params).copied();
            let mut adapter = if regroup.drops_adapter { vec![] } else { specs(&mut attached) };
            adapter.extend(regroup.added.get(&i).into_iter().flat_map(|(specs, _)| specs.clone()));
            for specs in [own, adapter] {
                let is_trained = |spec: &ParamSpec| (regroup.is_trained)(&spec.name);
                let (now, not): (Vec<_>, Vec<_>) = specs.into_iter().partition(is_trained);
                let quantization = regroup.quantizer.as_ref().map(Quantizer::quantization);
                let has_codes =
                    |spec: &ParamSpec| quantization.is_some_and(|kind| is_quantized(spec, kind));
                if let Some(spec) = now.iter().find(|spec| has_codes(spec)) {
                    return Err(quantized(&spec.name));
                }
                let (codes, not): (Vec<_>, Vec<_>) = not.into_iter().partition(has_codes);
                let group =
                    |specs, is_trained, is_quantized| Group { specs, is_trained, is_quantized };
                trained.push(group(now, true, false));
                frozen.extend([group(codes, false, true), group(not, false, false)]);
            }
        }
        trained.append(&mut frozen);
        trained.retain(|group| !group.specs.is_empty());
        Ok(trained)
    }

    /// A unit of parameters that lie in others so far, with copies of their values where they are here.
    fn part(&self, group: &Group, quantizer: Option<&Quantizer>) -> Result<FlatUnit> {
        let Group { specs, is_quantized, .. } = group;
        let quantizer = quantizer.filter(|_| *is_quantized);
        if self.is_outline {
            let outline = FlatUnit::outline(specs.clone(), self.device)?;
            return Ok(match quantizer {
                Some(quantizer) => outline.quantized(Codes::outline(quantizer, specs)?),
                None => outline,
            });
        }
        let part = FlatUnit::absent_in(specs.clone(), self.kind(), self.device)?;
        if let Some(quantizer) = quantizer {
            // A model is quantized before it has values.
            return Ok(part.quantized(Codes::absent(quantizer, specs)?));
        }
        let places = self.places_by_name();
        let from = |spec: &ParamSpec| places.get(spec.name.as_str()).copied();
        let first = specs.first().and_then(from).map(|place| &self.units[place.unit]);
        // What is not here yet gets its first values later.
        let Some(first) = first.filter(|unit| unit.is_here()) else { return Ok(part) };
        no_grad(|| {
            let _ = part.allocate()?.f_zero_()?;
            let _ = part.cast_and_pad(first.kind(), 1)?;
            for (spec, param) in specs.iter().zip(part.params()) {
                let Some(ParamPlace { unit, index }) = from(spec) else { continue };
                param.f_data()?.f_copy_(&self.units[unit].value(index)?)?;
            }
            Ok(part)
        })
    }

    /// The layers over `units`, which have the parameters in other places.
    fn layers_over(&self, units: &[FlatUnit], regroup: &Regroup<'_>) -> Vec<ModelLayer> {
        let new = places_by_name(units);
        let moved = |place: &ParamPlace| new[self.spec(*place).name.as_str()];
        let mut seen = BTreeSet::new();
        let layer = |(i, layer): (usize, &ModelLayer)| {
            let Places { own, borrowed, attached } = &layer.places;
            let kept = attached.iter().filter(|_| !regroup.drops_adapter);
            let kept = kept.map(|attached| attached.map(moved));
            let added = regroup.added.get(&i).into_iter().flat_map(|(_, attached)| attached);
            let added = added.map(|attached| attached.map(|name| new[name.as_str()]));
            let places = Places {
                own: own.iter().map(moved).collect(),
                borrowed: borrowed.iter().map(moved).collect(),
                attached: kept.chain(added).collect(),
            };
            let known = (i, layer.name.clone(), Rc::clone(&layer.layer), layer.block);
            ModelLayer::new(known, places, &mut seen)
        };
        self.layers.iter().enumerate().map(layer).collect()
    }

    /// The description of a parameter.
    pub(super) fn spec(&self, ParamPlace { unit, index }: ParamPlace) -> &ParamSpec {
        &self.units[unit].specs()[index]
    }

    /// The place of each parameter by its name.
    pub(super) fn places_by_name(&self) -> BTreeMap<&str, ParamPlace> {
        places_by_name(&self.units)
    }
}

fn quantized(name: &str) -> Error {
    Error::new(Code::BadValue, format!("{name} is quantized, and cannot be trained"))
        .hint("train an adapter beside it, with `model.lora(#{ ... })`, or load the model without `quantize`")
}

pub(super) fn places_by_name(units: &[FlatUnit]) -> BTreeMap<&str, ParamPlace> {
    let mut places = BTreeMap::new();
    for (unit, flat) in units.iter().enumerate() {
        places.extend(
            flat.names().enumerate().map(|(index, name)| (name, ParamPlace { unit, index })),
        );
    }
    places
}
