//! The weights that the optimizer updates: float32, one flat tensor a unit.
//!
//! A model in float32 is its own master. In 16 bits a step changes a parameter by less than the
//! format can tell apart (Micikevicius et al. 2018, section 3.1), so that float32 copies are kept,
//! and rounded into the model after each step. From ZeRO's stage 1 on a rank has the masters of its
//! slice of each unit alone, and the ranks give each other the parameters that they updated.

use crate::{
    config::{PrecisionConfig, ZeroConfig},
    dist::{ProcessGroup, Shard},
    error::Result,
    model::{FlatUnit, Model},
    tensor::{Kind, Tensor, no_grad},
};

/// A float32 tensor for each unit, laid out as the unit or as this rank's slice of it.
#[derive(Debug)]
pub(super) struct MasterWeights {
    flats: Vec<Tensor>,
    /// Whether the model's parameters are these very tensors.
    shared: bool,
    /// The slice that these are, if they are not whole.
    shard: Option<Shard>,
    allgather_bucket_size: u64,
}

impl MasterWeights {
    /// Brings the parameters of `model` into the format of `precision` and a layout that the ranks
    /// of `group` can divide, and keeps what they were.
    ///
    /// # Errors
    /// Memory is exhausted; a part of the units may then have their new format.
    pub(super) fn take(
        model: &Model,
        group: &ProcessGroup,
        precision: &PrecisionConfig,
        zero: &ZeroConfig,
    ) -> Result<Self> {
        let kind = Kind::from(precision.dtype);
        let shared = !precision.has_master_weights();
        let shard = zero.shards_optimizer(group.world_size()).then(|| Shard::of(group));
        let take = |unit: &FlatUnit| {
            let before = unit.lay_out(kind, group.world_size())?;
            let whole = if shared { unit.flat().shallow_clone() } else { before };
            let Some(shard) = shard else { return Ok(whole.f_to_kind(Kind::Float)?) };
            let part = shard.slice(&whole)?;
            if shared {
                return Ok(part);
            }
            // A copy, so that the rest is freed.
            let own = Tensor::f_empty([part.numel() as i64], (Kind::Float, part.device()))?;
            own.shallow_clone().f_copy_(&part)?;
            Ok(own)
        };
        let flats = no_grad(|| model.units().iter().map(take).collect::<Result<_>>())?;
        let allgather_bucket_size = zero.allgather_bucket_size;
        Ok(Self { flats, shared, shard, allgather_bucket_size })
    }

    /// Whether they are the model's parameters themselves.
    pub(super) fn are_shared(&self) -> bool {
        self.shared
    }

    /// One tensor for each unit.
    pub(super) fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// Which slice of each unit they are; `None` for all of it.
    pub(super) fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// Those of unit `i` of `model`, laid out as the unit. Every rank must call it.
    ///
    /// # Errors
    /// Memory is exhausted; another rank fails.
    pub(super) fn whole(&self, group: &ProcessGroup, model: &Model, i: usize) -> Result<Tensor> {
        let own = &self.flats[i];
        match self.shard {
            // All of them are there: the parameters themselves, or the masters.
            None => Ok(own.shallow_clone()),
            Some(_) if self.shared => Ok(model.units()[i].flat().shallow_clone()),
            Some(_) => {
                let numel = model.units()[i].flat().numel() as i64;
                let whole = Tensor::f_empty([numel], (Kind::Float, own.device()))?;
                group.all_gather_into(&whole, own)?;
                Ok(whole)
            }
        }
    }

    /// Rounds them into the parameters of `model`, on every rank. Every rank must call it.
    ///
    /// # Errors
    /// libtorch refuses; another rank fails.
    pub(super) fn publish(&self, model: &Model, group: &ProcessGroup) -> Result<()> {
        no_grad(|| {
            for (unit, master) in model.units().iter().zip(&self.flats) {
                let whole = unit.flat();
                if !self.shared {
                    let own =
                        self.shard.map_or_else(|| Ok(whole.shallow_clone()), |s| s.slice(whole));
                    own?.f_copy_(master)?;
                }
                if self.shard.is_some() {
                    group.gather_slices(whole, self.allgather_bucket_size)?;
                }
            }
            Ok(())
        })
    }
}
