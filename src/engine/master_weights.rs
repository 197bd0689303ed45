//! Copies master weights into the model after each step.
//!
//! The optimizer updates master weights: float32, one flat tensor a unit. A model in float32 is its
//! own master, unless one of both is offloaded. In 16 bits a step changes a parameter by less than
//! the format can tell apart (Micikevicius et al. 2018, section 3.1), so that float32 copies are kept,
//! and rounded into the model after each step. A bf16 model whose masters are bf16 is its own master,
//! too, and is rounded stochastically. From ZeRO's stage 1 on a rank has the masters of its slice of
//! each unit alone, and the ranks give each other the parameters that they updated: after the step,
//! or at stage 3 when a layer needs them.

use std::rc::Rc;

use super::{
    offload::Offload, parameter_shards::ParameterShards, parameter_slices::ParameterSlices,
    state_file::UnitState, state_tensors::Parameters,
};
use crate::{
    bridge::{lists, memory::Ledger},
    config::{PrecisionConfig, ZeroConfig},
    dist::{ProcessGroup, ShardSpec},
    error::Result,
    model::{FlatUnit, Model, ParameterStore},
    tensor::{Kind, Tensor, moved, no_grad, write_over},
};

/// The way from master weights to parameters.
pub(super) struct MasterWeights {
    model: Rc<Model>,
    group: Rc<ProcessGroup>,
    /// For each unit that is trained, whether its parameters are the master weights themselves.
    shared: Vec<bool>,
    /// The slice of each unit whose masters this rank has, if they are not whole.
    shard: Option<ShardSpec>,
    /// The parameters, where they are not all on the device.
    parameters: Option<Rc<ParameterShards>>,
    allgather_bucket_size: u64,
}

impl MasterWeights {
    /// Brings the parameters of `model` into the format of `precision` and a layout that the ranks
    /// of `group` can divide, gives `keep` the master weights of each unit that is trained in turn, and shares the
    /// parameters out where `offload` says so: one unit after the other, so that what is kept and
    /// one whole unit are all that is ever here.
    pub(super) fn begin(
        model: &Rc<Model>,
        group: &Rc<ProcessGroup>,
        precision: &PrecisionConfig,
        zero: &ZeroConfig,
        offload: &Offload,
        mut keep: impl FnMut(usize, Tensor) -> Result<()>,
    ) -> Result<Self> {
        let kind = Kind::from(precision.dtype);
        let shared: Vec<_> = offload.optimizer.iter().map(|place| place.shares_master).collect();
        let shard = zero.shards_optimizer(group.world_size()).then(|| ShardSpec::of(group));
        let mut parameters = match offload.shares_parameters {
            true => {
                let units = (&model.units()[..], kind);
                Some(ParameterShards::new(group, zero, &offload.parameters, units)?)
            }
            false => None,
        };
        let slice = shard.unwrap_or(ShardSpec::WHOLE);
        let mut take = |(i, unit): (usize, &FlatUnit)| {
            let given = model.starts_from_values();
            model.materialize(i)?;
            if given {
                // Ranks may have drawn them apart: all take rank 0's, as in PyTorch.
                group.broadcast(unit.flat()?, 0)?;
            }
            let before = unit.cast_and_pad(kind, group.world_size())?;
            // First the copy, then the parameters go.
            let copy = match unit.is_trainable() && !shared[i] {
                true => Some(slice.copy(&before, Kind::Float)?),
                false => None,
            };
            drop(before);
            let own = match &mut parameters {
                Some(parameters) => {
                    parameters.take(unit, i)?;
                    parameters.slices().in_memory(i).map(Tensor::shallow_clone)
                }
                None => None,
            };
            if !unit.is_trainable() {
                return Ok(());
            }
            let master = copy.or(own);
            keep(i, master.map_or_else(|| slice.slice(unit.flat()?), Ok)?)
        };
        no_grad(|| model.units().iter().enumerate().try_for_each(&mut take))?;
        let parameters = parameters.map(Rc::new);
        if let Some(parameters) = &parameters {
            parameters.slices().finish()?;
        }
        model.set_store(parameters.clone().map(|parameters| parameters as Rc<dyn ParameterStore>));
        Ok(Self {
            model: Rc::clone(model),
            group: Rc::clone(group),
            shared,
            shard,
            parameters,
            allgather_bucket_size: zero.allgather_bucket_size,
        })
    }

    /// Which slice of each unit this rank has the masters of; `None` for all of it.
    pub(super) fn shard(&self) -> Option<ShardSpec> {
        self.shard
    }

    /// Bytes of the parameters that are always on this rank's device.
    pub(super) fn parameter_bytes(&self) -> u64 {
        let device = self.model.device();
        let kept = |(i, unit): (usize, &FlatUnit)| match &self.parameters {
            Some(parameters) => parameters.slices().bytes_on(device, i, unit),
            None => unit.bytes(),
        };
        self.model.units().iter().enumerate().map(kept).sum()
    }

    /// Counts the parameters that are brought to the device on this ledger from now on.
    pub(super) fn count_on(&self, ledger: &Rc<Ledger>) {
        if let Some(parameters) = &self.parameters {
            parameters.count_on(ledger);
        }
    }

    /// The slices of the parameters, where unit `i` is not whole on the device.
    fn slices_of(&self, i: usize) -> Option<&ParameterSlices> {
        let parameters = self.parameters.as_ref().filter(|all| !all.stays_whole(i))?;
        Some(parameters.slices())
    }

    /// The master weights of unit `i` in float32, laid out as the unit, from those that this rank has. Every
    /// rank must call it.
    pub(super) fn whole(&self, i: usize, master: &Tensor) -> Result<Tensor> {
        let whole = self.whole_as_kept(i, master)?;
        Ok(no_grad(|| whole.f_to_kind(Kind::Float))?)
    }

    fn whole_as_kept(&self, i: usize, master: &Tensor) -> Result<Tensor> {
        let unit = &self.model.units()[i];
        match self.shard {
            // All of them are there: the parameters themselves, or the masters.
            None => Ok(master.shallow_clone()),
            Some(_) if self.shared[i] && self.slices_of(i).is_none() => {
                Ok(unit.flat()?.shallow_clone())
            }
            Some(_) => self.gathered(i, master),
        }
    }

    /// Unit `i` of something that is laid out as the master weights, whole, from the part of this rank.
    /// Every rank must call it.
    pub(super) fn gathered(&self, i: usize, own: &Tensor) -> Result<Tensor> {
        if self.shard.is_none() {
            return Ok(own.shallow_clone());
        }
        let device = self.group.device();
        let numel = self.model.units()[i].padded_numel();
        let whole = Tensor::f_empty([numel], (own.kind(), device))?;
        self.group.all_gather_into(&whole, &moved(own, device)?)?;
        Ok(whole)
    }

    /// The parameters of unit `i`, which is frozen, in float32 and laid out as the unit. Every rank must
    /// call it.
    pub(super) fn frozen(&self, i: usize) -> Result<Tensor> {
        let _gathered = self.model.gather_unit(i)?;
        let flat = self.model.units()[i].flat()?;
        Ok(no_grad(|| flat.f_to_dtype(Kind::Float, false, true))?)
    }

    /// Gives the parameters of unit `i`, which is frozen, their values in `params`.
    pub(super) fn restore_frozen(&self, i: usize, params: &Parameters) -> Result<()> {
        let unit = &self.model.units()[i];
        let slices = self.slices_of(i);
        let shard = slices.map_or(ShardSpec::WHOLE, |_| ShardSpec::of(&self.group));
        let part = match slices {
            Some(_) => {
                let numel = unit.padded_numel() / self.group.world_size() as i64;
                Tensor::f_zeros([numel], (unit.kind(), self.group.device()))?
            }
            None => unit.flat()?.shallow_clone(),
        };
        let number = self.model.unit_number(i);
        for (index, (spec, &offset)) in unit.specs().iter().zip(unit.offsets()).enumerate() {
            let end = offset + spec.numel();
            if let Some((from, to, at)) = shard.overlap(unit.padded_numel(), offset, end) {
                let into = part.f_narrow(0, at, to - from)?;
                let runs = self.model.runs(number, index);
                params.read_part(&spec.name, &runs, (from - offset, &into))?;
            }
        }
        slices.map_or(Ok(()), |slices| slices.set(i, &part))
    }

    /// Rounds the master weights of these units into the parameters of the model, on every rank.
    /// Every rank must call it for the same units, and [`MasterWeights::finish`] after the last.
    pub(super) fn publish(&self, units: &[(usize, &UnitState)]) -> Result<()> {
        // The next gather brings slices to the others.
        let (sliced, whole): (Vec<_>, Vec<_>) =
            units.iter().partition(|(i, _)| self.slices_of(*i).is_some());
        let has_own = |(i, _): &&&(usize, &UnitState)| !self.shared[*i];
        for (i, unit) in sliced.into_iter().filter(|unit| has_own(&unit)) {
            self.slices_of(*i).map_or(Ok(()), |slices| slices.set(*i, &unit.master))?;
        }
        self.round(&whole.iter().copied().filter(|unit| has_own(&unit)).collect::<Vec<_>>())?;
        if self.shard.is_some() {
            for &(i, _) in whole {
                let flat = self.model.units()[i].flat()?;
                no_grad(|| self.group.gather_slices(flat, self.allgather_bucket_size))?;
            }
        }
        Ok(())
    }

    /// Rounds the master weights of units that are whole on the device into their parameters.
    fn round(&self, units: &[&(usize, &UnitState)]) -> Result<()> {
        let shard = self.shard.unwrap_or(ShardSpec::WHOLE);
        let own = |&&(i, _): &&(usize, &UnitState)| shard.slice(self.model.units()[i].flat()?);
        let params: Vec<Tensor> = units.iter().map(own).collect::<Result<_>>()?;
        let pairs = params.iter().zip(units.iter().map(|(_, unit)| &unit.master));
        if units.iter().all(|(_, unit)| unit.master.device() == self.model.device()) {
            return lists::copy_all(pairs);
        }
        pairs.into_iter().try_for_each(|(param, master)| write_over(param, master))
    }

    /// Waits until what was published is where it is kept.
    pub(super) fn finish(&self) -> Result<()> {
        self.parameters.as_ref().map_or(Ok(()), |parameters| parameters.slices().finish())
    }
}
