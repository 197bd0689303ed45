//! The state that is kept from step to step: master weights, their averages and the optimizer's own
//! tensors, by unit.

use super::{
    offload::{Location, Offload},
    state_file::{StateFile, UnitState},
};
use crate::{
    bridge::memory::{self, count_as},
    error::{Code, Error, Result},
    optim::Optimizer,
    tensor::{Device, Tensor, bytes_of, no_grad, settled},
};

/// The states of all units.
pub(super) enum UnitStates {
    Memory { device: Device, averages: bool, units: Vec<UnitState> },
    Disk(StateFile),
}

impl UnitStates {
    /// For the units of `optimizer`, none of which is there yet; with averages of the weights or without.
    pub(super) fn new(offload: &Offload, optimizer: &Optimizer, averages: bool) -> Result<Self> {
        Ok(match &offload.optimizer {
            &Location::Memory(device) => Self::Memory { device, averages, units: Vec::new() },
            Location::Disk(dir) => {
                let weights = (offload.shares_masters, averages);
                Self::Disk(StateFile::create(dir, optimizer, weights)?)
            }
        })
    }

    /// Keeps unit `i`, the next one, with the state of an optimizer that has not stepped yet.
    pub(super) fn add(&mut self, optimizer: &Optimizer, i: usize, master: Tensor) -> Result<()> {
        let _counting = count_as(memory::Kind::OptimizerState)?;
        match self {
            Self::Memory { device, averages, units } => {
                let master = settled(&master, *device)?;
                let average = averages.then(|| no_grad(|| master.f_detach_copy())).transpose()?;
                let zeros = |(kind, numel)| Ok(Tensor::f_zeros([numel], (kind, *device))?);
                let layout = optimizer.state_layout(i);
                let state = layout.into_iter().map(zeros).collect::<Result<_>>()?;
                units.push(UnitState { master, average, state });
                Ok(())
            }
            Self::Disk(file) => file.add(i, master),
        }
    }

    /// Where the optimizer steps.
    pub(super) fn device(&self) -> Device {
        match self {
            Self::Memory { device, .. } => *device,
            Self::Disk(_) => Device::Cpu,
        }
    }

    /// Whether all of it is in the memory of `device`.
    pub(super) fn is_on(&self, device: Device) -> bool {
        matches!(self, Self::Memory { device: location, .. } if *location == device)
    }

    /// Bytes of the master weights that are in the memory of `device`.
    pub(super) fn master_bytes(&self, device: Device) -> u64 {
        let Self::Memory { units, .. } = self else { return 0 };
        let masters = units.iter().map(|unit| &unit.master);
        let here = masters.filter(|master| master.device() == device);
        here.map(|master| bytes_of(master.kind(), master.numel() as i64)).sum()
    }

    /// Looks at what is kept of unit `i`.
    pub(super) fn look<T>(
        &self,
        i: usize,
        look: impl FnOnce(&UnitState) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Memory { units, .. } => {
                look(units.get(i).ok_or_else(|| Error::new(Code::Internal, "no such unit"))?)
            }
            Self::Disk(file) => look(&file.get(i)?),
        }
    }

    /// Changes what is kept of each unit: of all at once where it is in memory, else of one after
    /// the other.
    pub(super) fn change(
        &mut self,
        mut change: impl FnMut(&[(usize, &UnitState)]) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Memory { units, .. } => change(&units.iter().enumerate().collect::<Vec<_>>()),
            Self::Disk(file) => file.change(|i, unit| change(&[(i, unit)])),
        }
    }
}
