//! The first values of an adapter's parameters.

use std::rc::Rc;

use super::{PREFIX, is_of_adapter};
use crate::{
    error::{Code, Error, Result},
    model::{
        FlatUnit, Init, Model, ParamPlace, ParamSpec,
        initializer::{AdapterValues, Initializer, draw},
        part::UnitPart,
        trainable::places_by_name,
    },
    tensor::{Device, Kind, Tensor, guard, no_grad},
};

impl Model {
    /// Makes the adapter begin with `values`.
    pub(super) fn begin_adapter(&self, values: AdapterValues) {
        if self.is_outline {
            return;
        }
        let base = self.initializer.borrow_mut().take();
        let both = Initializer::Adapted { base, adapter: values };
        *self.initializer.borrow_mut() = Some(Rc::new(both));
    }

    /// Takes memory for a unit, or for this rank's `part` of one, and gives it its first values.
    pub(in crate::model) fn fill(
        &self,
        initializer: &Initializer,
        unit: &FlatUnit,
        part: Option<&UnitPart<'_>>,
    ) -> Result<()> {
        let Initializer::Adapted { base, adapter } = initializer else {
            return initializer.fill(unit, part);
        };
        let values = (adapter, base.as_deref());
        match (is_adapters(unit), part, base) {
            (true, None, _) => self.fill_adapter(unit, values),
            (true, Some(part), _) => self.fill_adapter_part(unit, part, values),
            (false, _, Some(base)) => self.fill(base, unit, part),
            (false, _, None) => Ok(()),
        }
    }

    /// Gives a rank its part of each parameter of an adapter, which is whole for a moment.
    fn fill_adapter_part(
        &self,
        unit: &FlatUnit,
        part: &UnitPart<'_>,
        values: (&AdapterValues, Option<&Initializer>),
    ) -> Result<()> {
        if unit.is_here() {
            return Ok(());
        }
        let filled = no_grad(|| {
            let _ = unit.allocate()?.f_zero_()?;
            for ((spec, param), split) in part.specs.iter().zip(unit.params()).zip(part.splits) {
                if let Some(own) = self.own_part_of_base(spec, values.0)? {
                    param.f_data()?.f_copy_(&own)?;
                    continue;
                }
                let whole = FlatUnit::absent(vec![spec.clone()], Device::Cpu)?;
                self.fill_adapter(&whole, values)?;
                let own = split.take(&whole.params()[0], part.rank, part.ranks)?;
                param.f_data()?.f_copy_(&own)?;
            }
            Ok(())
        });
        if filled.is_err() {
            unit.release()?;
        }
        filled
    }

    /// This rank's part of the parameter that a new one begins as a copy of, where it is here: both are
    /// divided alike.
    fn own_part_of_base(&self, spec: &ParamSpec, values: &AdapterValues) -> Result<Option<Tensor>> {
        if !matches!((spec.init, values), (Init::Saved, AdapterValues::Seed(_))) {
            return Ok(None);
        }
        let name = spec.name.strip_prefix(PREFIX).unwrap_or(&spec.name);
        let units = self.units();
        let place = places_by_name(units).get(name).copied();
        let here = place.filter(|place| units[place.unit].is_here());
        here.map(|place| units[place.unit].value(place.index)).transpose()
    }

    fn fill_adapter(
        &self,
        unit: &FlatUnit,
        (values, base): (&AdapterValues, Option<&Initializer>),
    ) -> Result<()> {
        if unit.is_here() {
            return Ok(());
        }
        let filled = guard("the first values of the adapter", || {
            no_grad(|| {
                let _ = unit.allocate()?.f_zero_()?;
                match values {
                    AdapterValues::File(file) => {
                        let mut params = unit.names().zip(unit.params());
                        return params.try_for_each(|(name, param)| file.copy_into(name, param));
                    }
                    AdapterValues::Seed(seed) => draw(unit, *seed)?,
                }
                for (spec, param) in unit.specs().iter().zip(unit.params()) {
                    if let Some(value) = self.value_of_base(spec, base)? {
                        param.f_data()?.f_copy_(&value)?;
                    }
                }
                Ok(())
            })
        });
        if filled.is_err() {
            unit.release()?;
        }
        filled
    }

    /// The value that a parameter has of the base, if it has one.
    fn value_of_base(
        &self,
        spec: &ParamSpec,
        base: Option<&Initializer>,
    ) -> Result<Option<Tensor>> {
        let name = spec.name.strip_prefix(PREFIX).unwrap_or(&spec.name);
        match spec.init {
            Init::Saved => self.first_value(name, base).map(Some),
            Init::Magnitude => {
                let module = name.strip_suffix(".lora_magnitude_vector").unwrap_or(name);
                let weight = format!("{module}.weight");
                let inputs = self.place_of(&weight).map(|place| self.spec(place).input_dim())?;
                let value = self.first_value(&weight, base)?.f_to_kind(Kind::Float)?;
                Ok(Some(value.f_norm_scalaropt_dim(2, inputs, false)?))
            }
            _ => Ok(None),
        }
    }

    fn place_of(&self, name: &str) -> Result<ParamPlace> {
        let place = self.places_by_name().get(name).copied();
        place.ok_or_else(|| Error::new(Code::Internal, format!("the base has no {name}")))
    }

    /// The value of a parameter of the base, whose unit may not be here yet.
    fn first_value(&self, name: &str, base: Option<&Initializer>) -> Result<Tensor> {
        let ParamPlace { unit, index } = self.place_of(name)?;
        let unit = &self.units[unit];
        if unit.is_here() {
            return unit.value(index);
        }
        let copy = unit.absent_twin()?;
        let base = base.ok_or_else(|| Error::new(Code::Internal, "a base without values"))?;
        self.fill(base, &copy, None)?;
        copy.value(index)
    }
}

/// Whether a unit is of an adapter.
fn is_adapters(unit: &FlatUnit) -> bool {
    unit.names().next().is_some_and(is_of_adapter)
}
