//! ZeRO's stage 3: each rank keeps its slice of the parameters, in the format of the model.
//!
//! A unit is gathered from all ranks before its layer runs and released after; the units that are
//! used next are gathered meanwhile, as far as the prefetch bucket goes. Units up to the
//! persistence threshold stay whole, because a gather of theirs would cost more than their memory.
//! DeepSpeed does the same with single tensors; here a unit is what a collective brings.

use std::{cell::RefCell, rc::Rc};

use crate::{
    bridge::memory,
    config::ZeroConfig,
    dist::{ProcessGroup, Shard, Work},
    error::{Code, Error, Result},
    model::{FlatUnit, Residence},
    tensor::Tensor,
};

/// This rank's slices, and what is gathered of the rest.
pub(super) struct ParameterShards {
    group: Rc<ProcessGroup>,
    /// For each unit this rank's slice; `None` for one that stays whole.
    shards: Vec<Option<Tensor>>,
    places: RefCell<Vec<Place>>,
    /// Elements that may be gathered ahead.
    prefetch_bucket_size: u64,
    /// Elements of a unit that stays whole, at most.
    persistence_threshold: u64,
}

/// Where a unit is.
enum Place {
    /// On all ranks.
    Apart,
    /// On its way here.
    Coming(Work),
    /// Here, for so many users.
    Here(usize),
}

impl ParameterShards {
    /// No unit yet.
    pub(super) fn new(group: &Rc<ProcessGroup>, zero: &ZeroConfig) -> Self {
        Self {
            group: Rc::clone(group),
            shards: Vec::new(),
            places: RefCell::default(),
            prefetch_bucket_size: zero.stage3_prefetch_bucket_size,
            persistence_threshold: zero.stage3_param_persistence_threshold,
        }
    }

    /// Takes this rank's slice of the next unit, whose parameters are there, and releases the unit.
    /// Returns the slice, or `None` where the unit stays whole.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub(super) fn take(&mut self, unit: &FlatUnit) -> Result<Option<&Tensor>> {
        let stays = unit.numel() as u64 <= self.persistence_threshold;
        self.shards.push(match stays {
            true => None,
            false => Some(Shard::of(&self.group).copy(unit.flat()?, unit.kind())?),
        });
        self.places.get_mut().push(Place::Apart);
        if !stays {
            unit.release()?;
        }
        Ok(self.shards.last().and_then(Option::as_ref))
    }

    /// This rank's slice of unit `i`; `None` where the unit stays whole.
    pub(super) fn shard(&self, i: usize) -> Option<&Tensor> {
        self.shards[i].as_ref()
    }

    /// Starts to gather unit `i`, unless it is here or on its way.
    fn start(&self, unit: &FlatUnit, i: usize, shard: &Tensor) -> Result<()> {
        let place = &mut self.places.borrow_mut()[i];
        if matches!(place, Place::Apart) {
            let _counting = memory::count_as(memory::Kind::Parameters)?;
            let whole = unit.allocate()?;
            *place = Place::Coming(self.group.all_gather_into_async(&whole, shard)?);
        }
        Ok(())
    }
}

impl Residence for ParameterShards {
    fn bring(&self, units: &[FlatUnit], i: usize, following: &[usize]) -> Result<()> {
        let Some(shard) = &self.shards[i] else { return Ok(()) };
        self.start(&units[i], i, shard)?;
        let mut left = self.prefetch_bucket_size;
        for &next in following {
            let Some(shard) = &self.shards[next] else { continue };
            let Some(rest) = left.checked_sub(units[next].numel() as u64) else { break };
            left = rest;
            self.start(&units[next], next, shard)?;
        }
        let place = std::mem::replace(&mut self.places.borrow_mut()[i], Place::Here(1));
        match place {
            Place::Coming(work) => work.wait(),
            Place::Here(users) => {
                self.places.borrow_mut()[i] = Place::Here(users + 1);
                Ok(())
            }
            Place::Apart => Err(Error::new(Code::Internal, "a gather was not started")),
        }
    }

    fn let_go(&self, units: &[FlatUnit], i: usize) {
        if self.shards[i].is_none() {
            return;
        }
        let place = &mut self.places.borrow_mut()[i];
        let Place::Here(users) = place else { return };
        *users -= 1;
        if *users == 0 {
            *place = Place::Apart;
            if let Err(e) = units[i].release() {
                // It only holds more memory than it should.
                tracing::error!("parameters were not released: {e}");
            }
        }
    }

    fn any(&self, flag: bool) -> Result<bool> {
        self.group.any(flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Init, ParamSpec},
        tensor::{Device, Kind},
    };

    /// Four units of 32 elements and one of 16, on the second of two ranks.
    fn shards(prefetch: u64, threshold: u64) -> (Vec<FlatUnit>, ParameterShards) {
        let group = Rc::new(ProcessGroup::simulated(1, 2, Device::Cpu).unwrap());
        let zero = ZeroConfig {
            stage: 3,
            stage3_prefetch_bucket_size: prefetch,
            stage3_param_persistence_threshold: threshold,
            ..ZeroConfig::default()
        };
        let unit = |numel| {
            let spec = ParamSpec::new("a", &[numel], Init::Zeros);
            let unit = FlatUnit::zeros(vec![spec], Device::Cpu).unwrap();
            let _ = unit.lay_out(Kind::Float, 2).unwrap();
            let numbers = Tensor::arange(unit.padded_numel(), (Kind::Float, Device::Cpu));
            unit.flat().unwrap().shallow_clone().copy_(&numbers);
            unit
        };
        let units: Vec<_> = [32, 32, 32, 32, 16].map(unit).into();
        let mut shards = ParameterShards::new(&group, &zero);
        for unit in &units {
            shards.take(unit).unwrap();
        }
        (units, shards)
    }

    fn here(units: &[FlatUnit]) -> Vec<bool> {
        units.iter().map(|unit| unit.flat().is_ok()).collect()
    }

    #[test]
    fn a_unit_is_there_while_it_is_used_and_comes_back_whole() {
        let (units, shards) = shards(0, 16);
        assert_eq!(here(&units), [false, false, false, false, true]);
        assert_eq!(units[0].params()[0].size(), [0]);
        shards.bring(&units, 1, &[2, 3]).unwrap();
        shards.bring(&units, 1, &[]).unwrap();
        assert_eq!(here(&units), [false, true, false, false, true]);
        // The simulated other rank has the same slice: the second half.
        let param = &units[1].params()[0];
        assert_eq!((param.double_value(&[0]), param.double_value(&[31])), (16.0, 31.0));
        shards.let_go(&units, 1);
        assert!(here(&units)[1], "one of two users is left");
        shards.let_go(&units, 1);
        assert!(!here(&units)[1]);
    }

    #[test]
    fn as_many_units_are_brought_ahead_as_the_bucket_holds() {
        for (prefetch, expected) in [(31, 1), (32, 2), (63, 2), (64, 3), (1000, 4)] {
            let (units, shards) = shards(prefetch, 16);
            shards.bring(&units, 0, &[1, 4, 2, 3]).unwrap();
            let count = here(&units[..4]).iter().filter(|&&here| here).count();
            assert_eq!(count, expected, "{prefetch}");
            // What was brought ahead is used without another gather.
            let sent = shards.group.traffic().total().calls;
            shards.bring(&units, 1, &[]).unwrap();
            let more = shards.group.traffic().total().calls - sent;
            assert_eq!(more, u64::from(expected == 1), "{prefetch}");
        }
    }
}
