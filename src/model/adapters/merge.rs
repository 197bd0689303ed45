//! The parameters of a base with what an adapter makes of them.

use std::{collections::BTreeMap, rc::Rc};

use super::{Attached, Part, no_adapter};
use crate::{
    error::{Error, Result},
    model::{Gathered, Model, Origin, ParamPlace, trainable::Regroup},
    tensor::{Kind, Tensor, no_grad},
};

impl Model {
    /// The model without its adapter, whose part is in its parameters. With `copies` the parameters are
    /// copied first, for those who go on with them as they are. Quantized parameters are dequantized
    /// for good.
    pub fn merged(self: &Rc<Self>, copies: bool) -> Result<Rc<Self>> {
        if self.adapter.is_none() {
            return Err(no_adapter());
        }
        let hint = "export_hf writes the model with its adapter merged, whatever the mesh";
        self.check_uncut().map_err(|e| e.hint(hint))?;
        self.make_whole()?;
        let regroup = Regroup {
            added: BTreeMap::new(),
            drops_adapter: true,
            copies,
            quantizer: None,
            is_trained: &|_| true,
        };
        let mut model = self.rebuilt(regroup)?;
        model.origin = Origin::Memory;
        let new = model.places_by_name();
        no_grad(|| {
            for (place, attached) in self.attached() {
                let ParamPlace { unit, index } = new[self.spec(place).name.as_str()];
                let value = self.merged_value(place, attached)?;
                model.units[unit].params()[index].f_data()?.f_copy_(&value)?;
            }
            Ok::<_, Error>(())
        })?;
        drop(new);
        Ok(Rc::new(model))
    }

    /// The parameters of this rank's layers that the adapter does something with.
    fn attached(&self) -> impl Iterator<Item = (ParamPlace, &Attached)> {
        self.layers().iter().flat_map(|layer| {
            let places = &layer.places;
            places.attached.iter().map(|attached| (places.of(attached.target), attached))
        })
    }

    /// The parameter at `place`, whose unit is gathered, as the adapter changes it. Every rank must call
    /// it.
    pub(in crate::model) fn merged_param(&self, place: ParamPlace) -> Result<Tensor> {
        let found = self.attached().find(|(target, _)| *target == place);
        let Some((_, attached)) = found else {
            return Ok(self.units()[place.unit].params()[place.index].shallow_clone());
        };
        let mut units: Vec<usize> = attached.params().map(|place| place.unit).collect();
        units.dedup();
        let gathered: Vec<Gathered<'_>> =
            units.into_iter().map(|unit| self.gather_unit(unit)).collect::<Result<_>>()?;
        let value = no_grad(|| self.merged_value(place, attached));
        drop(gathered);
        value
    }

    fn merged_value(&self, place: ParamPlace, attached: &Attached) -> Result<Tensor> {
        let tensor = |place: &ParamPlace| &self.units()[place.unit].params()[place.index];
        let Attached { part, .. } = attached.map(|place| tensor(place).shallow_clone());
        let lora = match part {
            // The copy outlives the gathering.
            Part::Saved(value) => return Ok(value.f_detach()?.f_mul_scalar(1.0)?),
            Part::Lora(lora) => lora,
        };
        let inputs = self.units()[place.unit].specs()[place.index].input_dim();
        let weight = self.units()[place.unit].value(place.index)?;
        let merged = lora.adapted(&weight, inputs)?;
        let merged = match &lora.magnitude {
            None => merged,
            Some(magnitude) => {
                let norm = merged.f_norm_scalaropt_dim(2, inputs, true)?;
                let mut shape = [1, 1];
                shape[1 - inputs as usize] = -1;
                let factor = magnitude.f_to_kind(Kind::Float)?.f_view(shape)?.f_div(&norm)?;
                merged.f_mul(&factor)?
            }
        };
        Ok(merged.f_to_kind(weight.kind())?)
    }
}
