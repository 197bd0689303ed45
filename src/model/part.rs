//! Consecutive layers of a model, with the units that they use, counted anew, and of each parameter the
//! part that a rank has.

use std::{ops::Range, rc::Rc};

use super::{
    architecture::ModelLayer,
    param_spec::{ParamPlace, ParamSpec},
    unit::FlatUnit,
};
use crate::{
    error::{Error, Result},
    tensor::{Device, no_grad},
    tensor_parallel::{Split, TensorParallel},
};

/// The layers of a stage.
pub(super) struct Stage {
    pub(super) range: Range<usize>,
    pub(super) layers: Vec<ModelLayer>,
    pub(super) units: Rc<[FlatUnit]>,
    /// The numbers of the units among those of the whole model.
    pub(super) numbers: Vec<usize>,
    pub(super) shared: Option<Shared>,
}

/// The layers of ranks that share them.
pub(super) struct Shared {
    pub(super) tp: TensorParallel,
    /// Of each parameter of each unit of the whole model.
    pub(super) splits: Vec<Vec<Split>>,
    /// The units of the whole model with the shapes of this rank's parts; they have no memory.
    pub(super) parts: Vec<FlatUnit>,
}

/// A unit and the part of it that a rank has.
pub(super) struct UnitPart<'a> {
    /// The whole parameters.
    pub(super) specs: &'a [ParamSpec],
    pub(super) splits: &'a [Split],
    pub(super) rank: i64,
    pub(super) ranks: i64,
}

impl Shared {
    /// The parts of `units` for this rank of `tp`.
    pub(super) fn of(
        (layers, units): (&[ModelLayer], &[FlatUnit]),
        tp: TensorParallel,
        device: Device,
    ) -> Result<Self> {
        // Between regions each rank has other tokens.
        let undivided = match tp.sharing().sequence_parallel {
            true => Split::Summed,
            false => Split::Whole,
        };
        let whole = |unit: &FlatUnit| vec![undivided.clone(); unit.specs().len()];
        let mut splits: Vec<Vec<Split>> = units.iter().map(whole).collect();
        for layer in layers {
            for (id, split) in layer.layer().splits() {
                if let Some(ParamPlace { unit, index }) = layer.places.own_place(id) {
                    splits[unit][index] = split;
                }
            }
            for attached in &layer.places.attached {
                let ParamPlace { unit, index } = layer.places.of(attached.target);
                let (of_target, spec) = (splits[unit][index].clone(), &units[unit].specs()[index]);
                for (ParamPlace { unit, index }, split) in attached.splits(&of_target, spec) {
                    splits[unit][index] = split;
                }
            }
        }
        let part = |(unit, splits): (&FlatUnit, &Vec<Split>)| {
            let part = FlatUnit::outline(part_specs(unit, splits, tp.size()), device)?;
            Ok::<_, Error>(part.trained(unit.is_trainable()))
        };
        let parts = units.iter().zip(&splits).map(part).collect::<Result<_>>()?;
        Ok(Self { tp, splits, parts })
    }

    /// The unit that stands for this rank's part of `unit`, the one of this number of the whole model,
    /// with the values that `unit` has.
    pub(super) fn unit(&self, unit: &FlatUnit, number: usize, device: Device) -> Result<FlatUnit> {
        let splits = &self.splits[number];
        let specs = part_specs(unit, splits, self.tp.size());
        let part = FlatUnit::absent_in(specs, unit.kind(), device)?;
        let part = part.trained(unit.is_trainable());
        if unit.is_here() {
            no_grad(|| {
                let _ = part.allocate()?.f_zero_()?;
                for ((whole, part), split) in unit.params().iter().zip(part.params()).zip(splits) {
                    part.f_data()?.f_copy_(&split.take(
                        whole,
                        self.tp.rank(),
                        self.tp.size(),
                    )?)?;
                }
                Ok::<_, Error>(())
            })?;
            unit.release()?;
        }
        Ok(part)
    }
}

fn part_specs(unit: &FlatUnit, splits: &[Split], ranks: i64) -> Vec<ParamSpec> {
    let part = |(spec, split): (&ParamSpec, &Split)| ParamSpec {
        shape: split.part_of(&spec.shape, ranks),
        ..spec.clone()
    };
    unit.specs().iter().zip(splits).map(part).collect()
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
                places: layer.places.map(&place),
                completes: used.iter().copied().filter(is_new).collect(),
                units: used,
                ..layer.clone()
            }
        });
        let layers = kept.collect();
        let units = numbers.iter().map(|&unit| units[unit].shallow_clone()).collect();
        Self { range, layers, units, numbers, shared: None }
    }
}
