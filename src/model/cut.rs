//! The part of a model that one rank has: consecutive layers, with the units that they use.
//!
//! A model knows all of its layers and parameters by name. Once it is cut, the layers and units that
//! it gives out are those of this rank's stage; the others have shapes, and no memory.

use std::ops::Range;

use super::{FlatUnit, Model, ModelLayer, part::Stage};
use crate::error::{Code, Error, Result};

impl Model {
    /// Keeps of the model the layers in `range` and the units that they use, for good. What the
    /// other units hold is given back.
    ///
    /// # Errors
    /// [`Code::BadValue`] for a model that is cut otherwise, or whose parameters another engine has
    /// shared out among its ranks.
    pub fn cut(&self, range: Range<usize>) -> Result<()> {
        let known = self.stage.get().map_or(0..self.layers.len(), |stage| stage.range.clone());
        if known == range {
            return Ok(());
        }
        if self.stage.get().is_some() || self.is_sharded() {
            let what = "the model belongs to an engine with another mesh of ranks";
            return Err(Error::new(Code::BadValue, what)
                .hint("make or load it anew for this engine; a checkpoint goes from any mesh to any other"));
        }
        if self.starts_from_values() || self.facts.names.is_none() {
            let what =
                "a pipeline needs a model of a family: layers of a recipe's own stay together";
            return Err(Error::new(Code::BadValue, what).option("pipeline.stages"));
        }
        let stage = Stage::of((&self.layers, &self.units), range);
        let others = (0..self.units.len()).filter(|unit| !stage.numbers.contains(unit));
        for unit in others.map(|unit| &self.units[unit]).filter(|unit| unit.is_here()) {
            unit.release()?;
        }
        self.stage.set(stage).map_err(|_| Error::new(Code::Internal, "a model was cut twice"))
    }

    /// The units of the whole model, also those that are not on this rank.
    pub fn all_units(&self) -> &[FlatUnit] {
        &self.units
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

    /// The units that the layers in `range` use.
    pub fn units_of(&self, range: Range<usize>) -> impl Iterator<Item = usize> {
        self.layers[range].iter().flat_map(|layer| layer.units.iter().copied())
    }
}
