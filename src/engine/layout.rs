//! A model's units as an optimizer sees them.

use crate::{
    model::FlatUnit,
    optim::{ParamLayout, UnitLayout},
};

/// Where the parameters of each unit lie when this many ranks can divide it.
pub(super) fn layouts(units: &[FlatUnit], world_size: usize) -> Vec<UnitLayout> {
    let unit = |unit: &FlatUnit| {
        let params = unit.specs().iter().zip(unit.offsets());
        let param = params.map(|(spec, &offset)| ParamLayout {
            name: spec.name.clone(),
            offset,
            shape: spec.shape.clone(),
            fan_in_out: spec.fan_in_out,
        });
        UnitLayout { numel: unit.numel_for(world_size), params: param.collect() }
    };
    units.iter().map(unit).collect()
}
