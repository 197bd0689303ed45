//! Parameters that are not all on this rank's device: ZeRO's stage 3, and its offload.
//!
//! Each rank keeps its slice of a unit, in the format of the model: on its device, in host memory or
//! on disk. A unit is gathered from all ranks before its layer runs and released after; the units
//! that are used next come meanwhile, as far as the prefetch bucket goes: gathered from memory, or
//! read from disk. Units up to the persistence threshold stay whole on the device, because a gather
//! of theirs would cost more than their memory. DeepSpeed does the same with single tensors; here a
//! unit is what a collective brings.

use std::{
    cell::{OnceCell, RefCell},
    rc::Rc,
};

use super::{
    offload::Location,
    parameter_slices::{ParameterSlices, SliceFetch},
};
use crate::{
    bridge::{
        memory::{self, Ledger},
        stream::{self, CopyDirection, on_lane},
    },
    config::ZeroConfig,
    dist::{ProcessGroup, ShardSpec, Work},
    error::{Code, Error, Result},
    model::{FlatUnit, ParameterStore},
    tensor::{Copying, Kind, Tensor, no_grad},
};

/// This rank's slices, and what is gathered of the rest.
pub(super) struct ParameterShards {
    group: Rc<ProcessGroup>,
    slices: ParameterSlices,
    states: RefCell<Vec<GatherState>>,
    /// Elements that may be brought ahead.
    prefetch_bucket_size: u64,
    /// The ledger that counts the units that are brought, also outside of a training.
    ledger: OnceCell<Rc<Ledger>>,
}

/// Where a unit is.
enum GatherState {
    /// On all ranks.
    Sharded,
    /// This rank's slice is being read.
    Reading(SliceFetch),
    /// The slices are being gathered.
    Gathering(Gather),
    /// Here, for so many users.
    Gathered(usize),
}

/// A unit on its way.
struct Gather {
    /// From the host of this rank.
    whole: Copying,
    /// From the other ranks.
    work: Option<Work>,
}

impl Gather {
    /// Operations that use the unit come after it.
    fn wait(self) -> Result<()> {
        self.work.map_or(Ok(()), Work::wait)?;
        self.whole.wait().map(drop)
    }
}

impl ParameterShards {
    /// For `units` whose parameters will have the format `kind`; all of them are there yet.
    pub(super) fn new(
        group: &Rc<ProcessGroup>,
        zero: &ZeroConfig,
        location: &Location,
        (units, kind): (&[FlatUnit], Kind),
    ) -> Result<Self> {
        let ranks = group.world_size();
        let threshold = zero.stage3_param_persistence_threshold;
        let slice = |unit: &FlatUnit| {
            let stays = unit.numel() as u64 <= threshold;
            // Codes have their format already, and parameters will have `kind`.
            let kind = if unit.quantization().is_some() { Kind::Uint8 } else { kind };
            let numel = if stays { 0 } else { unit.stored().numel_for(ranks) / ranks as i64 };
            (numel, kind)
        };
        let slices = ParameterSlices::new(location, units.iter().map(slice).collect())?;
        Ok(Self {
            group: Rc::clone(group),
            slices,
            states: RefCell::new(units.iter().map(|_| GatherState::Sharded).collect()),
            prefetch_bucket_size: zero.stage3_prefetch_bucket_size,
            ledger: OnceCell::new(),
        })
    }

    /// Counts what is brought on this ledger from now on.
    pub(super) fn count_on(&self, ledger: &Rc<Ledger>) {
        self.ledger.get_or_init(|| Rc::clone(ledger));
    }

    /// Takes this rank's slice of unit `i`, whose parameters are there, and releases the unit, unless
    /// it stays whole.
    pub(super) fn take(&mut self, unit: &FlatUnit, i: usize) -> Result<()> {
        if self.stays_whole(i) {
            return Ok(());
        }
        let stored = unit.stored();
        let slice = ShardSpec::of(&self.group).copy(stored.flat()?, stored.kind())?;
        self.slices.keep(i, slice)?;
        unit.release()
    }

    /// Whether unit `i` is always there.
    pub(super) fn stays_whole(&self, i: usize) -> bool {
        !self.slices.has(i)
    }

    /// This rank's slices.
    pub(super) fn slices(&self) -> &ParameterSlices {
        &self.slices
    }

    /// Starts to bring unit `i`, unless it is here or on its way.
    fn start(&self, unit: &FlatUnit, i: usize) -> Result<()> {
        let state = &mut self.states.borrow_mut()[i];
        if matches!(state, GatherState::Sharded) {
            *state = match self.slices.fetch(i)? {
                SliceFetch::InMemory(slice) => {
                    GatherState::Gathering(self.all_gather(unit, &slice)?)
                }
                // When a read ends is not the same on all ranks, and the order of gathers must be.
                read @ SliceFetch::Reading(..) => GatherState::Reading(read),
            };
        }
        Ok(())
    }

    /// Starts to gather a unit from all slices. From a slice on the host all of it goes on beside what
    /// the device computes.
    fn all_gather(&self, unit: &FlatUnit, slice: &Tensor) -> Result<Gather> {
        let _counting = memory::count_as(memory::Kind::Parameters)?;
        let whole = unit.stored().allocate()?;
        let all_gather = |slice: &Tensor| match self.group.world_size() {
            1 => no_grad(|| stream::copy(&whole, slice)).map(|()| None),
            _ => self.group.all_gather_into_async(&whole, slice).map(Some),
        };
        let device = whole.device();
        if slice.device() == device {
            let work = all_gather(slice)?;
            return Ok(Gather { whole: Copying::done(whole), work });
        }
        let (work, done) = on_lane(device, CopyDirection::ToDevice, || {
            if self.group.world_size() == 1 {
                return all_gather(slice);
            }
            let here = Tensor::f_empty(slice.size(), (slice.kind(), device))?;
            no_grad(|| stream::copy(&here, slice))?;
            all_gather(&here)
        })?;
        Ok(Gather { whole: Copying::until(whole, done), work })
    }
}

/// Of the units that are read next, each with its elements, the first ones that fit into the prefetch
/// bucket.
pub(super) fn brought_ahead(
    following: impl Iterator<Item = (usize, u64)>,
    prefetch_bucket_size: u64,
) -> impl Iterator<Item = usize> {
    let mut left = prefetch_bucket_size;
    following.map_while(move |(unit, numel)| {
        left = left.checked_sub(numel)?;
        Some(unit)
    })
}

impl ParameterStore for ParameterShards {
    fn gather(&self, units: &[FlatUnit], i: usize, following: &[usize]) -> Result<()> {
        if self.stays_whole(i) {
            return Ok(());
        }
        let open = |ledger: &Rc<Ledger>| ledger.open(memory::Kind::Parameters);
        let _counting = self.ledger.get().map(open).transpose()?;
        self.start(&units[i], i)?;
        let following = following.iter().filter(|&&next| !self.stays_whole(next));
        let following = following.map(|&next| (next, units[next].numel() as u64));
        for next in brought_ahead(following, self.prefetch_bucket_size) {
            self.start(&units[next], next)?;
        }
        let state = std::mem::replace(&mut self.states.borrow_mut()[i], GatherState::Gathered(1));
        match state {
            GatherState::Reading(slice) => self.all_gather(&units[i], &slice.wait()?)?.wait(),
            GatherState::Gathering(gather) => gather.wait(),
            GatherState::Gathered(users) => {
                self.states.borrow_mut()[i] = GatherState::Gathered(users + 1);
                Ok(())
            }
            GatherState::Sharded => Err(Error::new(Code::Internal, "a gather was not started")),
        }
    }

    fn release(&self, units: &[FlatUnit], i: usize) {
        if self.stays_whole(i) {
            return;
        }
        let state = &mut self.states.borrow_mut()[i];
        let GatherState::Gathered(users) = state else { return };
        *users -= 1;
        if *users == 0 {
            *state = GatherState::Sharded;
            if let Err(e) = units[i].stored().release() {
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
    fn shards(location: &Location, prefetch: u64) -> (Vec<FlatUnit>, ParameterShards) {
        let group = Rc::new(ProcessGroup::simulated(1, 2, Device::Cpu).unwrap());
        let zero = ZeroConfig {
            stage: 3,
            stage3_prefetch_bucket_size: prefetch,
            stage3_param_persistence_threshold: 16,
            ..ZeroConfig::default()
        };
        let unit = |numel| {
            let spec = ParamSpec::new("a", &[numel], Init::Zeros);
            let unit = FlatUnit::zeros(vec![spec], Device::Cpu).unwrap();
            let _ = unit.cast_and_pad(Kind::Float, 2).unwrap();
            let numbers = Tensor::arange(unit.padded_numel(), (Kind::Float, Device::Cpu));
            unit.flat().unwrap().shallow_clone().copy_(&numbers);
            unit
        };
        let units: Vec<_> = [32, 32, 32, 32, 16].map(unit).into();
        let of = (&*units, Kind::Float);
        let mut shards = ParameterShards::new(&group, &zero, location, of).unwrap();
        for (i, unit) in units.iter().enumerate() {
            shards.take(unit, i).unwrap();
        }
        (units, shards)
    }

    fn here(units: &[FlatUnit]) -> Vec<bool> {
        units.iter().map(|unit| unit.flat().is_ok()).collect()
    }

    const MEMORY: Location = Location::Memory(Device::Cpu);

    fn is_brought_and_released(location: &Location) {
        let (units, shards) = shards(location, 0);
        assert_eq!(here(&units), [false, false, false, false, true]);
        assert!(units[0].params()[0].f_double_value(&[0]).is_err(), "it is not here");
        shards.gather(&units, 1, &[2, 3]).unwrap();
        shards.gather(&units, 1, &[]).unwrap();
        assert_eq!(here(&units), [false, true, false, false, true]);
        // The simulated other rank has the same slice: the second half.
        let param = &units[1].params()[0];
        assert_eq!((param.double_value(&[0]), param.double_value(&[31])), (16.0, 31.0));
        shards.release(&units, 1);
        assert!(here(&units)[1], "one of two users is left");
        shards.release(&units, 1);
        assert!(!here(&units)[1]);
    }

    #[test]
    fn a_unit_is_there_while_it_is_used_and_comes_back_whole() {
        is_brought_and_released(&MEMORY);
    }

    #[test]
    fn a_unit_comes_back_from_disk_as_it_was_written_last() {
        let dir = tempfile::tempdir().unwrap();
        let location = Location::Disk(dir.path().into());
        is_brought_and_released(&location);
        let (units, shards) = shards(&location, 1000);
        // The other units are read ahead, and their memory is not taken yet.
        shards.gather(&units, 0, &[1, 2]).unwrap();
        assert_eq!(here(&units), [true, false, false, false, true]);
        shards.slices().set(3, &Tensor::full([16], 7.0, (Kind::Float, Device::Cpu))).unwrap();
        shards.gather(&units, 3, &[]).unwrap();
        assert_eq!(units[3].params()[0].double_value(&[31]), 7.0);
    }

    #[test]
    fn as_many_units_are_brought_ahead_as_the_bucket_holds() {
        for (prefetch, expected) in [(31, 1), (32, 2), (63, 2), (64, 3), (1000, 4)] {
            let (units, shards) = shards(&MEMORY, prefetch);
            shards.gather(&units, 0, &[1, 4, 2, 3]).unwrap();
            let count = here(&units[..4]).iter().filter(|&&here| here).count();
            assert_eq!(count, expected, "{prefetch}");
            // A prefetched unit is used without another gather.
            let sent = shards.group.traffic().total().calls;
            shards.gather(&units, 1, &[]).unwrap();
            let more = shards.group.traffic().total().calls - sent;
            assert_eq!(more, u64::from(expected == 1), "{prefetch}");
        }
    }
}
