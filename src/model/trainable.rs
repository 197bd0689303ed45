//! The parameters that are trained, and those that are frozen.
//!
//! A unit is trained as a whole or not at all. A layer of which some parameters are frozen has two
//! units, so that gradients, master weights and an optimizer's state exist for the trained ones alone.
//! Units that are trained come first, and whoever keeps something for each of them counts from 0.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use super::{FlatUnit, Model, ParamPlace, ParamSpec, architecture::ModelLayer, params::Places};
use crate::{error::Result, tensor::no_grad};

/// The parameters of a unit, and whether it is trained.
struct Group {
    specs: Vec<ParamSpec>,
    is_trained: bool,
}

impl Model {
    /// The first layer that uses a parameter that is trained.
    pub fn lowest_trainable(&self) -> Option<usize> {
        let is_trained = |layer: &ModelLayer| layer.units.iter().any(|&i| i < self.trainable);
        self.layers.iter().position(is_trained)
    }

    /// The same model, of which the parameters are trained that `is_trained` names, and the others
    /// frozen. Where it changes nothing it is this one.
    pub fn trained(self: &Rc<Self>, is_trained: impl Fn(&str) -> bool) -> Result<Rc<Self>> {
        let is_so = |unit: &FlatUnit| unit.names().all(|n| is_trained(n) == unit.is_trainable());
        if self.units.iter().all(is_so) {
            return Ok(Rc::clone(self));
        }
        if self.is_sharded() {
            self.make_whole()?;
        }
        let groups = self.groups(&is_trained);
        let known: BTreeMap<Vec<&str>, &FlatUnit> =
            self.units.iter().map(|unit| (unit.names().collect(), unit)).collect();
        let unit = |group: &Group| {
            let names: Vec<&str> = group.specs.iter().map(|spec| spec.name.as_str()).collect();
            let unit = match known.get(&names) {
                Some(unit) if unit.is_here() => unit.sharing(),
                _ => self.part(group)?,
            };
            Ok(unit.trained(group.is_trained))
        };
        let units = groups.iter().map(unit).collect::<Result<Vec<_>>>()?;
        let layers = self.layers_over(&units);
        let companions = self.companions.clone();
        let model = Self::with(self.facts.clone(), layers, units, self.device);
        *model.initializer.borrow_mut() = self.initializer.borrow().clone();
        Ok(Rc::new(Self { companions, is_outline: self.is_outline, ..model }))
    }

    /// The parameters of each layer by whether they are trained.
    fn groups(&self, is_trained: &dyn Fn(&str) -> bool) -> Vec<Group> {
        let (mut trained, mut frozen) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            let specs = layer.places.own.iter().map(|&place| self.spec(place).clone());
            let (now, not): (Vec<_>, Vec<_>) = specs.partition(|spec| is_trained(&spec.name));
            for (specs, is_trained, groups) in
                [(now, true, &mut trained), (not, false, &mut frozen)]
            {
                if !specs.is_empty() {
                    groups.push(Group { specs, is_trained });
                }
            }
        }
        trained.append(&mut frozen);
        trained
    }

    /// A unit of parameters that lie in others so far, with copies of their values where they are here.
    fn part(&self, Group { specs, .. }: &Group) -> Result<FlatUnit> {
        if self.is_outline {
            return FlatUnit::outline(specs.clone(), self.device);
        }
        let part = FlatUnit::absent(specs.clone(), self.device)?;
        let places = self.places_by_name();
        let from = |spec: &ParamSpec| places[spec.name.as_str()];
        let first = specs.first().map(|spec| &self.units[from(spec).unit]);
        let Some(first) = first.filter(|unit| unit.is_here()) else { return Ok(part) };
        no_grad(|| {
            let _ = part.allocate()?.f_zero_()?;
            let _ = part.cast_and_pad(first.kind(), 1)?;
            for (spec, param) in specs.iter().zip(part.params()) {
                let ParamPlace { unit, index } = from(spec);
                param.f_data()?.f_copy_(&self.units[unit].params()[index])?;
            }
            Ok(part)
        })
    }

    /// The layers over `units`, which have the same parameters in other places.
    fn layers_over(&self, units: &[FlatUnit]) -> Vec<ModelLayer> {
        let new = places_by_name(units);
        let moved = |places: &[ParamPlace]| {
            places.iter().map(|&place| new[self.spec(place).name.as_str()]).collect()
        };
        let mut seen = BTreeSet::new();
        let layer = |layer: &ModelLayer| {
            let places =
                Places { own: moved(&layer.places.own), borrowed: moved(&layer.places.borrowed) };
            let known = (layer.name.clone(), Rc::clone(&layer.layer), layer.block);
            ModelLayer::new(known, places, &mut seen)
        };
        self.layers.iter().map(layer).collect()
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

fn places_by_name(units: &[FlatUnit]) -> BTreeMap<&str, ParamPlace> {
    let mut places = BTreeMap::new();
    for (unit, flat) in units.iter().enumerate() {
        places.extend(
            flat.names().enumerate().map(|(index, name)| (name, ParamPlace { unit, index })),
        );
    }
    places
}
