//! Consecutive layers of a model, with the units that they use, counted anew.

use std::{ops::Range, rc::Rc};

use super::{
    architecture::ModelLayer,
    unit::{FlatUnit, ParamPlace},
};

/// The layers of a stage.
pub(super) struct Stage {
    pub(super) range: Range<usize>,
    pub(super) layers: Vec<ModelLayer>,
    pub(super) units: Rc<[FlatUnit]>,
    /// The numbers of the units among those of the whole model.
    pub(super) numbers: Vec<usize>,
}

impl Stage {
    /// Those in `range` of these layers over these units.
    pub(super) fn of((layers, units): (&[ModelLayer], &[FlatUnit]), range: Range<usize>) -> Self {
        let layers = &layers[range.clone()];
        let mut numbers: Vec<usize> =
            layers.iter().flat_map(|layer| layer.units.iter().copied()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let local = |unit: usize| numbers.iter().position(|&number| number == unit).unwrap_or(0);
        let place = |place: &ParamPlace| ParamPlace { unit: local(place.unit), ..*place };
        let mut seen = vec![false; numbers.len()];
        let kept = layers.iter().map(|layer| {
            let used: Vec<usize> = layer.units.iter().map(|&unit| local(unit)).collect();
            let is_new = |unit: &usize| !std::mem::replace(&mut seen[*unit], true);
            ModelLayer {
                own: layer.own.map(local),
                borrowed: layer.borrowed.iter().map(place).collect(),
                completes: used.iter().copied().filter(is_new).collect(),
                units: used,
                ..layer.clone()
            }
        });
        let layers = kept.collect();
        let units = numbers.iter().map(|&unit| units[unit].shallow_clone()).collect();
        Self { range, layers, units, numbers }
    }
}
