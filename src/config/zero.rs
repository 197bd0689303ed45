//! ZeRO (Rajbhandari et al. 2020) under DeepSpeed's names: what of the training state each rank
//! keeps only a part of.

use std::path::PathBuf;

use crate::error::{Code, Error, Result};

/// What is shared out, and how the parts travel. Sizes count elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZeroConfig {
    /// 0 shares nothing out, 1 the optimizer's state, 2 the gradients too, 3 the parameters too.
    pub stage: u8,
    /// Whether gradients travel while the backward pass goes on; `None` is only at stage 3, as in
    /// DeepSpeed.
    pub overlap_comm: Option<bool>,
    /// The most gradients of one collective: a larger unit is reduced in pieces.
    pub reduce_bucket_size: u64,
    /// The most parameters of one collective after a step: a larger unit is gathered in pieces.
    pub allgather_bucket_size: u64,
    /// Parameters that are gathered ahead of their use, at stage 3.
    pub stage3_prefetch_bucket_size: u64,
    /// Tensors up to this size are not shared out, at stage 3.
    pub stage3_param_persistence_threshold: u64,
    /// Where master weights and the optimizer's state are, and the optimizer steps.
    pub offload_optimizer: OffloadDevice,
    /// Where the parameters are while they are not used.
    pub offload_param: OffloadDevice,
    /// The directory on a fast disk for what is offloaded to it.
    pub nvme_path: Option<PathBuf>,
}

/// Where a part of the training state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadDevice {
    /// Where the model is.
    None,
    /// In host memory; where the model is there too, this is no other place.
    Cpu,
    /// In a file under [`ZeroConfig::nvme_path`].
    Nvme,
}

impl OffloadDevice {
    /// All of them by their names in options.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("none", Self::None), ("cpu", Self::Cpu), ("nvme", Self::Nvme)];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cpu => "cpu",
            Self::Nvme => "nvme",
        }
    }
}

impl Default for ZeroConfig {
    /// DeepSpeed's defaults.
    fn default() -> Self {
        Self {
            stage: 0,
            overlap_comm: None,
            reduce_bucket_size: 500_000_000,
            allgather_bucket_size: 500_000_000,
            stage3_prefetch_bucket_size: 50_000_000,
            stage3_param_persistence_threshold: 100_000,
            offload_optimizer: OffloadDevice::None,
            offload_param: OffloadDevice::None,
            nvme_path: None,
        }
    }
}

impl ZeroConfig {
    /// Whether each rank of `world_size` has only a part of the optimizer's state and of the
    /// weights that it updates.
    pub fn shards_optimizer(&self, world_size: usize) -> bool {
        self.stage >= 1 && world_size > 1
    }

    /// Whether each rank of `world_size` keeps only a part of the gradients.
    pub fn shards_gradients(&self, world_size: usize) -> bool {
        self.stage >= 2 && world_size > 1
    }

    /// Whether each rank of `world_size` keeps only a part of the parameters.
    pub fn shards_parameters(&self, world_size: usize) -> bool {
        self.stage >= 3 && world_size > 1
    }

    /// Whether gradients travel while the backward pass goes on.
    pub fn overlaps(&self) -> bool {
        self.overlap_comm.unwrap_or(self.stage == 3)
    }

    /// Refuses an offload that could not happen, as DeepSpeed ignores it.
    ///
    /// # Errors
    /// [`Code::BadValue`], all faults together: the stage does not divide what is to be offloaded;
    /// no directory for what goes to NVMe.
    pub fn check(&self) -> Result<()> {
        let offloads = [
            ("offload_optimizer", self.offload_optimizer, 1),
            ("offload_param", self.offload_param, 3),
        ];
        let mut faults = Vec::new();
        for (option, device, stage) in offloads {
            if device != OffloadDevice::None && self.stage < stage {
                let message = format!(
                    "`zero.{option}` \"{}\" needs stage {stage}{}, and the stage is {}",
                    device.name(),
                    if stage < 3 { " or more" } else { "" },
                    self.stage
                );
                let hint = format!("give `zero.stage` {stage}, or leave `{option}` out");
                faults.push(Error::new(Code::BadValue, message).option(option).hint(hint));
            }
        }
        let to_nvme = offloads.iter().find(|(_, device, _)| *device == OffloadDevice::Nvme);
        if let (Some((option, ..)), None) = (to_nvme, &self.nvme_path) {
            let message = format!("`zero.{option}` \"nvme\" needs `zero.nvme_path`");
            let fault = Error::new(Code::BadValue, message).option("nvme_path");
            faults.push(fault.hint("name a directory on the disk that is to be used"));
        }
        Error::all(faults).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(config: ZeroConfig) -> Vec<String> {
        let Err(e) = config.check() else { return Vec::new() };
        let all = std::iter::once(&e).chain(e.others());
        all.map(|e| e.option_path().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_offload_needs_its_stage_and_nvme_a_directory() {
        let (offload_optimizer, offload_param) = (OffloadDevice::Cpu, OffloadDevice::Nvme);
        let both = ZeroConfig { offload_optimizer, offload_param, ..ZeroConfig::default() };
        assert_eq!(options(both.clone()), ["offload_optimizer", "offload_param", "nvme_path"]);
        let of_stage = |stage| options(ZeroConfig { stage, ..both.clone() });
        assert_eq!(of_stage(2), ["offload_param", "nvme_path"]);
        assert_eq!(of_stage(3), ["nvme_path"]);
        let nvme_path = Some("/local_nvme".into());
        assert!(ZeroConfig { stage: 3, nvme_path, ..both }.check().is_ok());
    }
}
