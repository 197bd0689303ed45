//! The part of a model that one rank has: consecutive layers, with the units that they use.
//!
//! A model knows all of its layers and parameters by name. Once it is cut, the layers and units that
//! it gives out are those of this rank's stage; the others have shapes, and no memory.

use std::{ops::Range, rc::Rc};

use super::{
    FlatUnit, LayerSharing, Model, ModelLayer,
    part::{Shared, Stage, UnitPart},
};
use crate::{
    error::{Code, Error, Result},
    tensor::Tensor,
    tensor_parallel::{LayerRanks, RowsHere, Run, Sharing, Split, TensorParallel},
};

impl Model {
    /// Keeps of the model the layers in `range` and the units that they use, for good, and of those
    /// this rank's part, where ranks share them. What the other units hold is given back.
    ///
    /// # Errors
    /// [`Code::BadValue`] for a model that is cut otherwise, or whose parameters another engine has
    /// shared out among its ranks.
    pub fn cut(&self, range: Range<usize>, sharing: Option<Sharing>) -> Result<()> {
        let known = self.stage.get().map_or(0..self.layers.len(), |stage| stage.range.clone());
        let shared = self.tensor_parallel().map(|tp| tp.sharing().facts());
        if known == range && shared == sharing.as_ref().map(Sharing::facts) {
            return Ok(());
        }
        self.check_uncut()?;
        if self.is_sharded() {
            return Err(in_parts());
        }
        self.check_divisible()?;
        let mut stage = Stage::of((&self.layers, &self.units), range);
        if let Some(sharing) = sharing {
            let tp = TensorParallel::new(sharing);
            let shared = Shared::of((&self.layers, &self.units), tp, self.device)?;
            let unit = |&number: &usize| shared.unit(&self.units[number], number, self.device);
            stage.units = stage.numbers.iter().map(unit).collect::<Result<Vec<_>>>()?.into();
            stage.shared = Some(shared);
        }
        let others = (0..self.units.len()).filter(|unit| !stage.numbers.contains(unit));
        for unit in others.map(|unit| &self.units[unit]).filter(|unit| unit.is_here()) {
            unit.release()?;
        }
        self.stage.set(stage).map_err(|_| Error::new(Code::Internal, "a model was cut twice"))
    }

    /// Refuses a model of which this rank has a part.
    pub(super) fn check_uncut(&self) -> Result<()> {
        self.stage.get().map_or(Ok(()), |_| Err(in_parts()))
    }

    /// The part of this model that a rank has, to plan with: the layers in `range`, which ranks share as
    /// `sharing` says. It has shapes alone, and is not to be trained.
    pub fn part_outline(&self, range: Range<usize>, sharing: LayerSharing) -> Result<Self> {
        let mut stage = Stage::of((&self.layers, &self.units), range);
        if sharing.ranks > 1 {
            let tp = TensorParallel::new(Sharing {
                ranks: Rc::new(PlannedRanks(sharing.ranks.cast_signed())),
                sequence_parallel: sharing.sequence_parallel,
            });
            let shared = Shared::of((&self.layers, &self.units), tp, self.device)?;
            let part = |&number: &usize| shared.parts[number].shallow_clone();
            stage.units = stage.numbers.iter().map(part).collect();
            stage.shared = Some(shared);
        }
        let units = self.units.iter().map(FlatUnit::shallow_clone).collect();
        let model = Self::with(self.facts.clone(), self.layers.clone(), units, self.device);
        model.sparse.replace(self.sparse_attention());
        model.tiled_mlp.set(self.tiled_mlp.get());
        model.stage.set(stage).map_err(|_| Error::new(Code::Internal, "a model was cut twice"))?;
        Ok(model)
    }

    /// Refuses a model whose layers stay on one rank, whole.
    ///
    /// # Errors
    /// [`Code::BadValue`] for layers of a recipe's own.
    pub fn check_divisible(&self) -> Result<()> {
        if self.starts_from_values() || self.facts.names.is_none() {
            return Err(own_layers_stay_whole());
        }
        Ok(())
    }

    /// The units of the whole model, also those that are not on this rank: of each parameter the
    /// part that a rank has.
    pub fn all_units(&self) -> &[FlatUnit] {
        self.shared().map_or(&self.units, |shared| &shared.parts)
    }

    /// The units of the whole model, each parameter whole.
    pub fn whole_units(&self) -> &[FlatUnit] {
        &self.units
    }

    fn shared(&self) -> Option<&Shared> {
        self.stage.get()?.shared.as_ref()
    }

    /// The ranks that share the layers, if any do.
    pub(super) fn tensor_parallel(&self) -> Option<&TensorParallel> {
        self.shared().map(|shared| &shared.tp)
    }

    /// How the ranks that share the layers divide parameter `index` of unit `number` of the whole
    /// model; `None` where they are not shared.
    pub fn split(&self, number: usize, index: usize) -> Option<&Split> {
        self.shared().map(|shared| &shared.splits[number][index])
    }

    /// The whole of that parameter from this rank's part, which has its shape. All ranks that share
    /// the layers must call it.
    pub fn joined(&self, number: usize, index: usize, part: &Tensor) -> Result<Tensor> {
        match self.shared() {
            Some(shared) => match &shared.splits[number][index] {
                split if split.divides() => split.join(&shared.tp.gather(part)?),
                _ => Ok(part.shallow_clone()),
            },
            None => Ok(part.shallow_clone()),
        }
    }

    /// The runs of elements of that parameter that this rank has.
    pub fn runs(&self, number: usize, index: usize) -> Vec<Run> {
        let shape = &self.units[number].specs()[index].shape;
        match self.shared() {
            Some(shared) => {
                shared.splits[number][index].runs(shape, shared.tp.rank(), shared.tp.size())
            }
            None => Split::Whole.runs(shape, 0, 1),
        }
    }

    /// The part that this rank has of unit `i` of those that are here.
    pub(super) fn unit_part(&self, i: usize) -> Option<UnitPart<'_>> {
        let (shared, number) = (self.shared()?, self.unit_number(i));
        Some(UnitPart {
            specs: self.units[number].specs(),
            splits: &shared.splits[number],
            rank: shared.tp.rank(),
            ranks: shared.tp.size(),
        })
    }

    /// Makes the ranks that share the layers draw random numbers apart, where each has its own part,
    /// while a layer runs that was seeded with this; with nothing it is over.
    pub fn draw_from(&self, seed: Option<u64>) {
        self.tensor_parallel().iter().for_each(|tp| tp.draw_from(seed));
    }

    /// Refuses rows whose tokens the ranks cannot have equal parts of, where each has a part of them
    /// while it trains.
    ///
    /// # Errors
    /// [`Code::Shape`] with the numbers.
    pub fn check_sharing_of_tokens(&self, input_ids: &Tensor, labels: &Tensor) -> Result<()> {
        let Some(tp) = self.tensor_parallel() else { return Ok(()) };
        [input_ids, labels].into_iter().try_for_each(|ids| tp.check_tokens(ids.size()[1]))
    }

    /// Refuses so many ranks for a layer where they do not divide it.
    ///
    /// # Errors
    /// [`Code::BadValue`] with the numbers.
    pub fn check_sharing(&self, ranks: usize) -> Result<()> {
        self.check_vocabulary(ranks)?;
        let all = self.layers.iter().flat_map(|layer| {
            layer
                .layer()
                .divisible()
                .into_iter()
                .map(move |(what, count)| (&layer.name, what, count))
        });
        let odd = all.filter(|(_, _, count)| count % ranks as i64 != 0);
        let Some((layer, what, count)) = odd.into_iter().next() else { return Ok(()) };
        let message = format!(
            "`tensor_parallel.autotp_size` {ranks} does not divide the {count} {what} of layer {layer}"
        );
        Err(Error::new(Code::BadValue, message).option("tensor_parallel.autotp_size"))
    }

    /// Refuses so many ranks that the last would have no row of a vocabulary.
    fn check_vocabulary(&self, ranks: usize) -> Result<()> {
        for split in self.layers.iter().flat_map(|layer| layer.layer().splits()) {
            let (_, Split::Rows(rows)) = split else { continue };
            let last = RowsHere::of(rows, ranks as i64 - 1, ranks as i64);
            if last.count == 0 {
                let message = format!(
                    "`tensor_parallel.autotp_size` {ranks} leaves a rank no row of a vocabulary of {rows}"
                );
                return Err(
                    Error::new(Code::BadValue, message).option("tensor_parallel.autotp_size")
                );
            }
        }
        Ok(())
    }

    /// The layers of the whole model, also those that are not on this rank.
    pub fn all_layers(&self) -> &[ModelLayer] {
        &self.layers
    }

    /// The number among all units of unit `i` of those that are here.
    pub fn unit_number(&self, i: usize) -> usize {
        self.stage.get().map_or(i, |stage| stage.numbers[i])
    }

    /// The number among the units that are here of unit `number` of all; `None` for one that is not.
    pub fn local_unit(&self, number: usize) -> Option<usize> {
        match self.stage.get() {
            Some(stage) => stage.numbers.iter().position(|&known| known == number),
            None => Some(number),
        }
    }
}

/// Ranks of a plan, of which none is there.
struct PlannedRanks(i64);

impl LayerRanks for PlannedRanks {
    fn place(&self) -> (i64, i64) {
        (0, self.0)
    }

    fn sum(&self, _: &Tensor) -> Result<()> {
        Err(planned())
    }

    fn sum_parts(&self, _: &Tensor) -> Result<Tensor> {
        Err(planned())
    }

    fn gather(&self, _: &Tensor) -> Result<Vec<Tensor>> {
        Err(planned())
    }
}

fn planned() -> Error {
    Error::new(Code::Internal, "a model that is planned has no ranks to compute with")
}

/// The error for layers that are on several ranks, and of a recipe's own.
pub fn own_layers_stay_whole() -> Error {
    let what = "pipelines and tensor parallelism need a model of a family: a recipe's own layers stay whole";
    Error::new(Code::BadValue, what)
}

fn in_parts() -> Error {
    let what = "the model belongs to an engine whose ranks have parts of it: a pipeline's stages, or shares of layers";
    Error::new(Code::BadValue, what)
        .hint("make or load it anew for another use; a checkpoint goes from any mesh to any other")
}
