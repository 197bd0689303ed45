//! The process group of a recipe, and the device that this rank computes on.

use std::{
    cell::{Cell, OnceCell},
    rc::Rc,
};

use crate::{
    dist::{ProcessGroup, Rendezvous},
    error::{Result, StopWhen},
    recipe::rights::Environment,
    tensor::{Device, DeviceChoice, LocalRank, make_current},
};

/// The ranks that train together.
pub struct Ranks {
    /// The device that the user chose.
    pub device: DeviceChoice,
    group: OnceCell<Rc<ProcessGroup>>,
    replica: Replica,
}

/// The number of this rank among those that read different rows, and how many there are, once an
/// engine with a mesh of ranks is made; before that each rank is one.
pub(crate) type Replica = Rc<Cell<Option<(usize, usize)>>>;

impl Ranks {
    pub(super) fn new() -> Self {
        Self { device: DeviceChoice::Best, group: OnceCell::new(), replica: Rc::default() }
    }

    /// The group that torchrun's variables name, or this process alone. It is connected at the first
    /// call, which all ranks must make; this thread then works on the process's device.
    /// `stop` says that the user wants no more.
    pub(super) fn connected(&self, env: &Environment, stop: StopWhen) -> Result<Rc<ProcessGroup>> {
        self.group_or(|| {
            let rendezvous = Rendezvous::from_env(env)?;
            let device = self.device.resolve(local_rank(rendezvous.as_ref()))?;
            make_current(device)?;
            match rendezvous {
                Some(rendezvous) => ProcessGroup::connect_until(&rendezvous, device, stop),
                None => ProcessGroup::single(device),
            }
        })
    }

    /// The place of this rank among those that read different rows.
    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    /// A group of one rank on the CPU, for a plan.
    pub(super) fn planned(&self) -> Result<Rc<ProcessGroup>> {
        self.group_or(|| ProcessGroup::single(Device::Cpu))
    }

    fn group_or(&self, make: impl FnOnce() -> Result<ProcessGroup>) -> Result<Rc<ProcessGroup>> {
        if let Some(group) = self.group.get() {
            return Ok(Rc::clone(group));
        }
        let group = Rc::new(make()?);
        Ok(Rc::clone(self.group.get_or_init(|| group)))
    }

    /// The number of ranks on this machine.
    pub(super) fn on_this_machine(env: &Environment) -> Result<usize> {
        Ok(local_rank(Rendezvous::from_env(env)?.as_ref()).count)
    }

    /// Whether this process is the only rank.
    pub(super) fn is_alone(env: &Environment) -> bool {
        Rendezvous::from_env(env).is_ok_and(|other| other.is_none_or(|other| other.world_size == 1))
    }

    /// Refuses a device that is not there, before anything is loaded.
    pub fn check_device(&self, env: &Environment) -> Result<()> {
        // The default is a device that is there, and CUDA takes time to start.
        if self.device != DeviceChoice::Best {
            let rendezvous = Rendezvous::from_env(env)?;
            self.device.resolve(local_rank(rendezvous.as_ref()))?;
        }
        Ok(())
    }
}

/// The rank of this process among those on this machine.
fn local_rank(rendezvous: Option<&Rendezvous>) -> LocalRank {
    rendezvous
        .map_or(LocalRank::ALONE, |r| LocalRank { rank: r.local_rank, count: r.local_world_size })
}
