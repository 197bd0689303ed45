//! The weights that the optimizer updates: float32, one flat tensor a unit.
//!
//! A model in float32 is its own master. In 16 bits a step changes a parameter by less than the
//! format can tell apart (Micikevicius et al. 2018, section 3.1), so that float32 copies are kept,
//! and rounded into the model after each step.

use crate::{
    config::PrecisionConfig,
    error::Result,
    model::{FlatUnit, Model},
    tensor::{Kind, Tensor, no_grad},
};

/// A float32 tensor for each unit, laid out as the unit.
#[derive(Debug)]
pub(super) struct MasterWeights {
    flats: Vec<Tensor>,
    /// Whether the model's parameters are these very tensors.
    shared: bool,
}

impl MasterWeights {
    /// Brings the parameters of `model` into the format of `precision`, and keeps what they were.
    ///
    /// # Errors
    /// Memory is exhausted; a part of the units may then have their new format.
    pub(super) fn take(model: &Model, precision: &PrecisionConfig) -> Result<Self> {
        let kind = Kind::from(precision.dtype);
        let shared = !precision.has_master_weights();
        let take = |unit: &FlatUnit| match (unit.cast(kind)?, shared) {
            (_, true) => Ok(unit.flat().shallow_clone()),
            (before, false) => Ok(before.f_to_kind(Kind::Float)?),
        };
        let flats = no_grad(|| model.units().iter().map(take).collect::<Result<_>>())?;
        Ok(Self { flats, shared })
    }

    /// Whether they are the model's parameters themselves.
    pub(super) fn are_shared(&self) -> bool {
        self.shared
    }

    /// One tensor for each unit.
    pub(super) fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// Each parameter's part with its name.
    pub(super) fn named<'a>(&self, model: &'a Model) -> Vec<(&'a str, Tensor)> {
        let units = model.units().iter().zip(&self.flats);
        units.flat_map(|(unit, flat)| unit.names().zip(unit.views(flat))).collect()
    }

    /// Rounds them into the parameters of `model`.
    ///
    /// # Errors
    /// libtorch refuses.
    pub(super) fn publish(&self, model: &Model) -> Result<()> {
        if self.shared {
            return Ok(());
        }
        no_grad(|| {
            for (unit, flat) in model.units().iter().zip(&self.flats) {
                unit.flat().shallow_clone().f_copy_(flat)?;
            }
            Ok(())
        })
    }
}
