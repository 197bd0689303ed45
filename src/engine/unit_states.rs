//! The state that is kept from step to step: master weights, their averages and the optimizer's own
//! tensors, by unit.

use std::collections::BTreeMap;

use super::{
    offload::{Location, Offload, UnitOffload},
    state_file::{StateFile, UnitState},
};
use crate::{
    bridge::memory::{self, count_as},
    error::{Code, Error, Result},
    optim::Optimizer,
    tensor::{Device, Tensor, bytes_of, no_grad, settled},
};

/// The states of all units, each of which has its place.
pub(super) struct UnitStates {
    places: Vec<UnitOffload>,
    averages: bool,
    in_memory: BTreeMap<usize, UnitState>,
    on_disk: Option<StateFile>,
}

impl UnitStates {
    /// For the units of `optimizer`, none of which is there yet; with averages of the weights or without.
    pub(super) fn new(offload: &Offload, optimizer: &Optimizer, averages: bool) -> Result<Self> {
        let places = offload.optimizer.clone();
        let directory = places.iter().find_map(|place| place.location.directory());
        let on_disk = |directory| {
            let all = (0..).zip(&places);
            let units = all.filter(|(_, place)| place.location.directory().is_some());
            let units: Vec<_> = units.map(|(i, place)| (i, place.shares_master)).collect();
            StateFile::create(directory, optimizer, (&units, averages))
        };
        let on_disk = directory.map(on_disk).transpose()?;
        Ok(Self { places, averages, in_memory: BTreeMap::new(), on_disk })
    }

    /// Keeps unit `i`, the next one, with the state of an optimizer that has not stepped yet.
    pub(super) fn add(&mut self, optimizer: &Optimizer, i: usize, master: Tensor) -> Result<()> {
        let _counting = count_as(memory::Kind::OptimizerState)?;
        let device = match (&self.places[i].location, &mut self.on_disk) {
            (Location::Disk(_), Some(file)) => return file.add(i, master),
            (location, _) => location.device(),
        };
        let master = settled(&master, device)?;
        let average = self.averages.then(|| no_grad(|| master.f_detach_copy())).transpose()?;
        let zeros = |(kind, numel)| Ok(Tensor::f_zeros([numel], (kind, device))?);
        let state = optimizer.state_layout(i).into_iter().map(zeros).collect::<Result<_>>()?;
        self.in_memory.insert(i, UnitState { master, average, state });
        Ok(())
    }

    /// The devices on which the optimizer steps, the host last: it is busy while it does.
    pub(super) fn devices(&self) -> Vec<Device> {
        let mut devices: Vec<Device> = Vec::new();
        for place in &self.places {
            let device = place.location.device();
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        devices.sort_by_key(|device| *device == Device::Cpu);
        devices
    }

    /// Whether all of it is in the memory of `device`.
    pub(super) fn is_on(&self, device: Device) -> bool {
        self.places.iter().all(|place| place.location == Location::Memory(device))
    }

    /// Bytes of the master weights in the memory of `device` that are not the model's parameters.
    pub(super) fn master_bytes(&self, device: Device) -> u64 {
        let masters = self.in_memory.iter().filter(|(i, _)| !self.places[**i].shares_master);
        let here = masters.map(|(_, unit)| &unit.master).filter(|m| m.device() == device);
        here.map(|master| bytes_of(master.kind(), master.numel() as i64)).sum()
    }

    /// Looks at what is kept of unit `i`.
    pub(super) fn look<T>(
        &self,
        i: usize,
        look: impl FnOnce(&UnitState) -> Result<T>,
    ) -> Result<T> {
        match (self.in_memory.get(&i), &self.on_disk) {
            (Some(unit), _) => look(unit),
            (None, Some(file)) => look(&file.get(i)?),
            (None, None) => Err(Error::new(Code::Internal, "no such unit")),
        }
    }

    /// Changes what is kept of each unit: of all at once that are in the memory of one device, then of one
    /// after the other on disk. `change` is told the device.
    pub(super) fn change(
        &mut self,
        mut change: impl FnMut(Device, &[(usize, &UnitState)]) -> Result<()>,
    ) -> Result<()> {
        for device in self.devices() {
            let here = |(i, _): &(usize, &UnitState)| self.places[*i].location.device() == device;
            let units = self.in_memory.iter().map(|(&i, unit)| (i, unit));
            let units: Vec<_> = units.filter(here).collect();
            if !units.is_empty() {
                change(device, &units)?;
            }
        }
        match &mut self.on_disk {
            Some(file) => file.change(|i, unit| change(Device::Cpu, &[(i, unit)])),
            None => Ok(()),
        }
    }
}
