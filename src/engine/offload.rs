//! The offload devices of an engine's state (ZeRO-Offload, Ren et al. 2021;
//! ZeRO-Infinity, Rajbhandari et al. 2021).

use std::path::PathBuf;

use crate::{
    config::{Dtype, EngineConfig, OffloadDevice, ZeroConfig, optimizer::Algorithm},
    error::{Code, Error, Result},
    tensor::Device,
};

/// A place for tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// In the memory of this device.
    Memory(Device),
    /// In a file of this directory; in host memory while they are used.
    Disk(PathBuf),
}

impl Location {
    fn new(zero: &ZeroConfig, offload: OffloadDevice, device: Device) -> Result<Self> {
        match offload {
            OffloadDevice::None => Ok(Self::Memory(device)),
            OffloadDevice::Cpu => Ok(Self::Memory(Device::Cpu)),
            OffloadDevice::Nvme => {
                let path = zero.nvme_path.clone();
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
}

/// The places of a training.
#[derive(Debug, Clone)]
pub(super) struct Offload {
    /// Of master weights and the optimizer's state; the optimizer steps on its device.
    pub(super) optimizer: Location,
    /// Of this rank's parameters while they are not used.
    pub(super) parameters: Location,
    /// Whether a rank has parameters only while they are used, or of its own slice.
    pub(super) shares_parameters: bool,
    /// Whether the model's parameters are the master weights themselves.
    pub(super) shares_masters: bool,
    /// Whether the gradient of a unit leaves the device as soon as it is complete.
    pub(super) moves_gradients: bool,
}

impl Offload {
    /// The places for an engine with `config` on one of `world_size` ranks with a `device`.
    pub(super) fn new(config: &EngineConfig, world_size: usize, device: Device) -> Result<Self> {
        let zero = &config.zero;
        let optimizer = Location::new(zero, zero.offload_optimizer, device)?;
        let parameters = Location::new(zero, zero.offload_param, device)?;
        let elsewhere = parameters != Location::Memory(device);
        if config.precision.master_weights != Dtype::Fp32 {
            let is_elsewhere = elsewhere || optimizer.device() != device;
            check_master_weights(config, is_elsewhere)?;
        }
        Ok(Self {
            shares_parameters: elsewhere || zero.shards_parameters(world_size),
            shares_masters: !config.precision.has_master_weights()
                && !elsewhere
                && optimizer.device() == device,
            moves_gradients: zero.stage >= 2 && optimizer.device() != device,
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
        config::{Dtype, PrecisionConfig},
        engine::config,
    };

    fn offload(offloads: (OffloadDevice, OffloadDevice), dtype: Dtype, device: Device) -> Offload {
        let mut config = config(Option::None);
        config.precision = PrecisionConfig::new(dtype);
        config.zero = ZeroConfig {
            stage: 3,
            offload_optimizer: offloads.0,
            offload_param: offloads.1,
            nvme_path: Some("/nvme".into()),
            ..ZeroConfig::default()
        };
        Offload::new(&config, 1, device).unwrap()
    }

    const GPU: Device = Device::Cuda(0);
    use OffloadDevice::{Cpu, None, Nvme};

    #[test]
    fn host_memory_is_another_place_only_beside_a_gpu() {
        let here = offload((Cpu, Cpu), Dtype::Fp32, Device::Cpu);
        assert!(!here.shares_parameters && here.shares_masters && !here.moves_gradients);
        let there = offload((Cpu, Cpu), Dtype::Fp32, GPU);
        assert!(there.shares_parameters && !there.shares_masters && there.moves_gradients);
        assert_eq!(there.optimizer.device(), Device::Cpu);
    }

    #[test]
    fn parameters_are_the_masters_only_in_one_format_on_one_device() {
        let shares = |offloads, dtype, device| offload(offloads, dtype, device).shares_masters;
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
        assert!(
            both.optimizer == Location::Disk("/nvme".into())
                && both.shares_parameters
                && both.moves_gradients
        );
        assert_eq!(both.parameters.device(), Device::Cpu);
    }
}
