//! ZeRO (Rajbhandari et al. 2020) under DeepSpeed's names: what of the training state each rank
//! keeps only a part of.

use crate::error::{Code, Error, Result};

/// What is shared out, and how the parts travel. Sizes count elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZeroConfig {
    /// 0 shares nothing out, 1 the optimizer's state, 2 the gradients too, 3 the parameters too.
    pub stage: u8,
    /// Whether gradients travel while the backward pass goes on; `None` is only at stage 3, as in
    /// DeepSpeed.
    pub overlap_comm: Option<bool>,
    /// Gradients that are reduced together.
    pub reduce_bucket_size: u64,
    /// Parameters that are gathered together after a step.
    pub allgather_bucket_size: u64,
    /// Parameters that are gathered ahead of their use, at stage 3.
    pub stage3_prefetch_bucket_size: u64,
    /// Tensors up to this size are not shared out, at stage 3.
    pub stage3_param_persistence_threshold: u64,
    /// Where the optimizer's state is.
    pub offload_optimizer: OffloadDevice,
    /// Where the parameters are while they are not used.
    pub offload_param: OffloadDevice,
}

/// Where a part of the training state is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffloadDevice {
    /// Where the model is.
    None,
    /// In host memory.
    Cpu,
    /// In files.
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
        }
    }
}

impl ZeroConfig {
    /// Refuses what is not there yet. One rank has the whole state at every stage, and nothing
    /// travels.
    ///
    /// # Errors
    /// [`Code::BadValue`], all faults together: a stage above 0 on several ranks; offloading.
    pub fn check(&self, world_size: usize) -> Result<()> {
        let mut faults = Vec::new();
        if self.stage > 0 && world_size > 1 {
            let message = format!(
                "`zero.stage` {} on {world_size} ranks is not supported yet: every rank has the whole training state",
                self.stage
            );
            let fault = Error::new(Code::BadValue, message).option("stage");
            faults.push(fault.hint("stage 0 trains on any number of ranks, with the same result"));
        }
        for (option, device) in
            [("offload_optimizer", self.offload_optimizer), ("offload_param", self.offload_param)]
        {
            if device != OffloadDevice::None {
                let message = format!(
                    "`zero.{option}` \"{}\" is not supported yet: the training state stays where the model is",
                    device.name()
                );
                let fault = Error::new(Code::BadValue, message).option(option);
                faults.push(fault.hint("leave it out, or write \"none\""));
            }
        }
        Error::all(faults).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(config: ZeroConfig, world_size: usize) -> Vec<String> {
        let Err(e) = config.check(world_size) else { return Vec::new() };
        let all = std::iter::once(&e).chain(e.others());
        all.map(|e| e.option_path().unwrap().to_owned()).collect()
    }

    #[test]
    fn one_rank_has_every_stage_and_several_have_stage_0() {
        for stage in 0..=3 {
            let config = ZeroConfig { stage, ..ZeroConfig::default() };
            assert!(options(config, 1).is_empty());
            assert_eq!(options(config, 2).is_empty(), stage == 0);
        }
    }

    #[test]
    fn offloading_is_refused_by_name() {
        let (offload_optimizer, offload_param) = (OffloadDevice::Cpu, OffloadDevice::Nvme);
        let config =
            ZeroConfig { stage: 3, offload_optimizer, offload_param, ..ZeroConfig::default() };
        assert_eq!(options(config, 2), ["stage", "offload_optimizer", "offload_param"]);
    }
}
