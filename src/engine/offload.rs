//! The offload devices of an engine's state (ZeRO-Offload, Ren et al. 2021;
//! ZeRO-Infinity, Rajbhandari et al. 2021).

use crate::{
    config::{Dtype, EngineConfig, OffloadDevice, ZeroConfig, optimizer::Algorithm},
    error::{Code, Error, Result},
    fs::Place,
    tensor::Device,
};

/// A place for tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// In the memory of this device.
    Memory(Device),
    /// In a file of this directory; in host memory while they are used.
    Disk(Place),
}

impl Location {
    fn new(
        zero: &ZeroConfig,
        offload: OffloadDevice,
        (work_dir, device): (&Place, Device),
    ) -> Result<Self> {
        match offload {
            OffloadDevice::None => Ok(Self::Memory(device)),
            OffloadDevice::Cpu => Ok(Self::Memory(Device::Cpu)),
            OffloadDevice::Nvme => {
                let path = zero.nvme_path.as_ref().map(|path| work_dir.join(path));
                path.map(Self::Disk).ok_or_else(|| Error::new(Code::Internal, "no nvme_path"))
            }
        }
    }

    /// The device that has the tensors when they are used.
    pub(super) fn device(&self) -> Device {
        match self {
            Self::Memory(device) => *device,
            Self::Disk(_) => Device::Cpu,
        }
    }

    /// The directory of the file that has them, where one has.
    pub(super) fn directory(&self) -> Option<&Place> {
        match self {
            Self::Memory(_) => None,
            Self::Disk(directory) => Some(directory),
        }
    }
}

/// The places of a training.
#[derive(Debug, Clone)]
pub(super) struct Offload {
    /// Of each unit that is trained.
    pub(super) optimizer: Vec<UnitOffload>,
    /// Of this rank's parameters while they are not used.
    pub(super) parameters: Location,
    /// Whether a rank has parameters only while they are used, or of its own slice.
    pub(super) shares_parameters: bool,
}

/// The places of one unit's training.
#[derive(Debug, Clone)]
pub(super) struct UnitOffload {
    /// Of its master weights and the optimizer's state; the optimizer steps on its device.
    pub(super) location: Location,
    /// Whether the model's parameters are the master weights themselves.
    pub(super) shares_master: bool,
    /// Whether its gradient leaves the device as soon as it is complete.
    pub(super) moves_gradient: bool,
}

impl Offload {
    /// The places for an engine with `config` on one of `world_size` ranks, whose files are in a directory
    /// and whose tensors on a device; the units that are trained have these numbers of parameters.
    pub(super) fn new(
        config: &EngineConfig,
        world_size: usize,
        here: (&Place, Device),
        numels: &[u64],
    ) -> Result<Self> {
        let (zero, offload, device) = (&config.zero, config.zero.offload_optimizer, here.1);
        let away = Location::new(zero, offload.device, here)?;
        let parameters = Location::new(zero, zero.offload_param, here)?;
        let here = Location::Memory(device);
        let elsewhere = parameters != here;
        let unit = |goes| {
            let location = if goes { &away } else { &here }.clone();
            let is_here = location.device() == device;
            UnitOffload {
                shares_master: !config.precision.has_master_weights() && !elsewhere && is_here,
                moves_gradient: zero.stage >= 2 && !is_here,
                location,
            }
        };
        let optimizer: Vec<_> = offload.goes(numels).into_iter().map(unit).collect();
        if config.precision.master_weights != Dtype::Fp32 {
            let leaves = |unit: &UnitOffload| unit.location.device() != device;
            check_master_weights(config, elsewhere || optimizer.iter().any(leaves))?;
        }
        Ok(Self {
            shares_parameters: elsewhere || zero.shards_parameters(world_size),
            optimizer,
            parameters,
        })
    }
}

/// Refuses what needs float32 master weights.
fn check_master_weights(config: &EngineConfig, is_elsewhere: bool) -> Result<()> {
    let algorithm = &config.optimizer.algorithm;
    let what = match algorithm {
        Algorithm::Lamb(_) | Algorithm::Muon(_) => algorithm.name(),
        _ if is_elsewhere => "an offload to another device",
        _ if config.ema.is_some() => "`ema`",
        _ => return Ok(()),
    };
    let message = format!("`precision.master_weights` \"bf16\" does not go with {what}");
    Err(Error::new(Code::BadValue, message)
        .option("precision.master_weights")
        .hint("leave it out: the optimizer then updates float32 master weights"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Dtype, OptimizerOffload, PrecisionConfig},
        engine::config,
    };

    /// The places of a training with one unit.
    fn offload(offloads: (OffloadDevice, OffloadDevice), dtype: Dtype, device: Device) -> Offload {
        let mut config = config(Option::None);
        config.precision = PrecisionConfig::new(dtype);
        config.zero = ZeroConfig {
            stage: 3,
            offload_optimizer: offloads.0.into(),
            offload_param: offloads.1,
            nvme_path: Some("/nvme".into()),
            ..ZeroConfig::default()
        };
        Offload::new(&config, 1, (&"/".into(), device), &[1]).unwrap()
    }

    const GPU: Device = Device::Cuda(0);
    use OffloadDevice::{Cpu, None, Nvme};

    #[test]
    fn host_memory_is_another_place_only_beside_a_gpu() {
        let here = offload((Cpu, Cpu), Dtype::Fp32, Device::Cpu);
        let unit = &here.optimizer[0];
        assert!(!here.shares_parameters && unit.shares_master && !unit.moves_gradient);
        let there = offload((Cpu, Cpu), Dtype::Fp32, GPU);
        let unit = &there.optimizer[0];
        assert!(there.shares_parameters && !unit.shares_master && unit.moves_gradient);
        assert_eq!(unit.location.device(), Device::Cpu);
    }

    #[test]
    fn parameters_are_the_masters_only_in_one_format_on_one_device() {
        let shares =
            |offloads, dtype, device| offload(offloads, dtype, device).optimizer[0].shares_master;
        assert!(shares((None, None), Dtype::Fp32, GPU));
        assert!(shares((Nvme, None), Dtype::Fp32, Device::Cpu));
        assert!(!shares((None, None), Dtype::Bf16, GPU));
        assert!(!shares((Cpu, None), Dtype::Fp32, GPU));
        assert!(!shares((None, Cpu), Dtype::Fp32, GPU));
        assert!(!shares((None, Nvme), Dtype::Fp32, Device::Cpu));
    }

    #[test]
    fn what_is_on_disk_is_used_in_host_memory() {
        let both = offload((Nvme, Nvme), Dtype::Fp32, GPU);
        let unit = &both.optimizer[0];
        assert!(both.shares_parameters && unit.moves_gradient);
        assert_eq!(unit.location, Location::Disk("/nvme".into()));
        assert_eq!(both.parameters.device(), Device::Cpu);
    }

    #[test]
    fn each_unit_has_the_place_that_its_share_says() {
        let mut config = config(Option::None);
        config.zero.stage = 2;
        config.zero.offload_optimizer = OptimizerOffload { device: Cpu, ratio: 0.5 };
        let places = Offload::new(&config, 1, (&"/".into(), GPU), &[2, 1, 1]).unwrap().optimizer;
        let devices: Vec<_> = places.iter().map(|unit| unit.location.device()).collect();
        assert_eq!(devices, [GPU, Device::Cpu, Device::Cpu]);
        let alike = |unit: &UnitOffload| unit.shares_master != unit.moves_gradient;
        assert!(places[0].shares_master && places[1].moves_gradient && places.iter().all(alike));
    }
}
