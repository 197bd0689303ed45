//! A model's units as an optimizer sees them.

use crate::{
    model::FlatUnit,
    optim::{ParamLayout, UnitLayout},
};

/// Where the parameters of each unit lie.
pub(super) fn layouts(units: &[FlatUnit]) -> Vec<UnitLayout> {
    let unit = |unit: &FlatUnit| {
        let params = unit.specs().iter().zip(unit.offsets());
        let param = params.map(|(spec, &offset)| ParamLayout {
            name: spec.name.clone(),
            offset,
            shape: spec.shape.clone(),
            fans: spec.fans,
        });
        UnitLayout { numel: unit.flat().numel() as i64, params: param.collect() }
    };
    units.iter().map(unit).collect()
}
