//! The weights that the optimizer updates: float32, one flat tensor a unit.
//!
//! A model in float32 is its own master. In 16 bits a step changes a parameter by less than the
//! format can tell apart (Micikevicius et al. 2018, section 3.1), so that float32 copies are kept,
//! and rounded into the model after each step. From ZeRO's stage 1 on a rank has the masters of its
//! slice of each unit alone, and the ranks give each other the parameters that they updated: after
//! the step, or at stage 3 when a layer needs them.

use std::rc::Rc;

use super::parameter_shards::ParameterShards;
use crate::{
    config::{PrecisionConfig, ZeroConfig},
    dist::{ProcessGroup, Shard},
    error::Result,
    model::{FlatUnit, Model},
    tensor::{Kind, Tensor, no_grad},
};

/// A float32 tensor for each unit, laid out as the unit or as this rank's slice of it.
pub(super) struct MasterWeights {
    flats: Vec<Tensor>,
    /// Whether the model's parameters are these very tensors.
    shared: bool,
    /// The slice that these are, if they are not whole.
    shard: Option<Shard>,
    /// The parameters, where they are shared out too.
    parameters: Option<Rc<ParameterShards>>,
    allgather_bucket_size: u64,
}

impl MasterWeights {
    /// Brings the parameters of `model` into the format of `precision` and a layout that the ranks
    /// of `group` can divide, keeps what they were, and at stage 3 shares them out.
    ///
    /// # Errors
    /// Memory is exhausted; a part of the units may then have their new format.
    pub(super) fn take(
        model: &Model,
        group: &Rc<ProcessGroup>,
        precision: &PrecisionConfig,
        zero: &ZeroConfig,
    ) -> Result<Self> {
        model.make_whole()?;
        let kind = Kind::from(precision.dtype);
        let shared = !precision.has_master_weights();
        let shard = zero.shards_optimizer(group.world_size()).then(|| Shard::of(group));
        let mut parameters =
            zero.shards_parameters(group.world_size()).then(|| ParameterShards::new(group, zero));
        let mut take = |unit: &FlatUnit| {
            let before = unit.lay_out(kind, group.world_size())?;
            // First the copy, then the parameters go.
            let copy = match shard {
                _ if shared => None,
                None => Some(before.f_to_kind(Kind::Float)?),
                Some(shard) => Some(shard.copy(&before, Kind::Float)?),
            };
            drop(before);
            let own = match &mut parameters {
                Some(parameters) => parameters.take(unit)?.map(Tensor::shallow_clone),
                None => None,
            };
            match (copy, own, shard) {
                (Some(flat), ..) | (None, Some(flat), _) => Ok(flat),
                (None, None, Some(shard)) => shard.slice(unit.flat()?),
                (None, None, None) => Ok(unit.flat()?.shallow_clone()),
            }
        };
        let flats = no_grad(|| model.units().iter().map(&mut take).collect::<Result<_>>())?;
        let parameters = parameters.map(Rc::new);
        if let Some(parameters) = &parameters {
            model.set_residence(Rc::<ParameterShards>::clone(parameters));
        }
        let allgather_bucket_size = zero.allgather_bucket_size;
        Ok(Self { flats, shared, shard, parameters, allgather_bucket_size })
    }

    /// One tensor for each unit.
    pub(super) fn flats(&self) -> &[Tensor] {
        &self.flats
    }

    /// Which slice of each unit they are; `None` for all of it.
    pub(super) fn shard(&self) -> Option<Shard> {
        self.shard
    }

    /// Bytes of the copies that are not the parameters themselves.
    pub(super) fn bytes(&self) -> u64 {
        if self.shared { 0 } else { self.flats.iter().map(bytes_of).sum() }
    }

    /// Bytes of the parameters of `model` that are always on this rank.
    pub(super) fn parameter_bytes(&self, model: &Model) -> u64 {
        let kept = |(i, unit): (usize, &FlatUnit)| match self.parameter_shard(i) {
            Some(own) => bytes_of(own),
            None => unit.padded_numel() as u64 * unit.kind().elt_size_in_bytes() as u64,
        };
        model.units().iter().enumerate().map(kept).sum()
    }

    fn parameter_shard(&self, i: usize) -> Option<&Tensor> {
        self.parameters.as_ref()?.shard(i)
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
            Some(_) if self.shared && self.parameter_shard(i).is_none() => {
                Ok(model.units()[i].flat()?.shallow_clone())
            }
            Some(_) => {
                let numel = model.units()[i].padded_numel();
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
            for (i, (unit, master)) in model.units().iter().zip(&self.flats).enumerate() {
                if let Some(own) = self.parameter_shard(i) {
                    // The next gather brings it to the others.
                    if !self.shared {
                        own.shallow_clone().f_copy_(master)?;
                    }
                    continue;
                }
                let whole = unit.flat()?;
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

fn bytes_of(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}
