//! ZeRO (Rajbhandari et al. 2020) under DeepSpeed's names: what of the training state each rank
//! keeps only a part of.

use std::path::PathBuf;

use super::{
    offload::{OffloadDevice, OptimizerOffload},
    options::option_table,
};
use crate::error::{Code, Error, Result};

option_table! {
    /// What is sharded, and how the shards travel. Sizes count elements, and are taken at every stage,
    /// so that a recipe can try one stage after another.
    #[derive(Debug, Clone, PartialEq)]
    #[check(ZeroConfig::check)]
    pub struct ZeroConfig {
        /// 0 shards nothing, 1 the optimizer's state, 2 the gradients too, 3 the parameters too
        #[option(default = 0, range = 0..=3, deepspeed = "stage")]
        pub stage: u8,
        /// whether gradients are reduced during the backward pass; by default only at stage 3
        #[option(optional, deepspeed = "overlap_comm")]
        pub overlap_comm: Option<bool>,
        /// the most gradients of one collective; a larger unit is reduced in pieces
        #[option(default = 500_000_000, range = 1.., deepspeed = "reduce_bucket_size")]
        pub reduce_bucket_size: u64,
        /// the most parameters of one collective after a step; a larger unit is gathered in pieces
        #[option(default = 500_000_000, range = 1.., deepspeed = "allgather_bucket_size")]
        pub allgather_bucket_size: u64,
        /// parameters that stage 3 gathers ahead of their use
        #[option(default = 50_000_000, deepspeed = "stage3_prefetch_bucket_size")]
        pub stage3_prefetch_bucket_size: u64,
        /// layers of up to this many parameters are not sharded at stage 3
        #[option(default = 100_000, deepspeed = "stage3_param_persistence_threshold")]
        pub stage3_param_persistence_threshold: u64,
        /// where master weights and the optimizer's state are, and the optimizer steps; a map says for which
        /// share of the parameters
        #[option(default = OptimizerOffload::NONE)]
        pub offload_optimizer: OptimizerOffload,
        /// where the parameters are while they are not used
        #[option(default = OffloadDevice::None)]
        pub offload_param: OffloadDevice,
        /// the directory on a fast disk for the state that is offloaded to "nvme"
        #[option(optional)]
        pub nvme_path: Option<PathBuf>,
    }
}

/// Whether gradients travel while the backward pass goes on, at this stage of ZeRO.
pub fn overlaps(overlap_comm: Option<bool>, stage: u8) -> bool {
    overlap_comm.unwrap_or(stage == 3)
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
        overlaps(self.overlap_comm, self.stage)
    }

    /// Refuses an offload that could not happen, as DeepSpeed ignores it.
    ///
    /// # Errors
    /// [`Code::BadValue`], all faults together: the stage does not divide what is to be offloaded;
    /// no directory for what goes to NVMe.
    pub fn check(&self) -> Result<()> {
        let offloads = [
            ("offload_optimizer", self.offload_optimizer.device, 1),
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
    use serde_json::json;

    use super::*;
    use crate::config::options::{Value, read_table};

    fn zero(json: serde_json::Value) -> Result<ZeroConfig> {
        let Value::Map(map) = json.into() else { panic!("a map") };
        read_table("zero", &map)
    }

    fn options(config: ZeroConfig) -> Vec<String> {
        let Err(e) = config.check() else { return Vec::new() };
        let all = std::iter::once(&e).chain(e.others());
        all.map(|e| e.option_path().unwrap().to_owned()).collect()
    }

    #[test]
    fn an_offload_needs_its_stage_and_nvme_a_directory() {
        let (offload_optimizer, offload_param) = (OffloadDevice::Cpu.into(), OffloadDevice::Nvme);
        let both = ZeroConfig { offload_optimizer, offload_param, ..ZeroConfig::default() };
        assert_eq!(options(both.clone()), ["offload_optimizer", "offload_param", "nvme_path"]);
        let of_stage = |stage| options(ZeroConfig { stage, ..both.clone() });
        assert_eq!(of_stage(2), ["offload_param", "nvme_path"]);
        assert_eq!(of_stage(3), ["nvme_path"]);
        let nvme_path = Some("/local_nvme".into());
        assert!(ZeroConfig { stage: 3, nvme_path, ..both }.check().is_ok());
    }

    #[test]
    fn deepspeeds_names_and_defaults() {
        assert_eq!(zero(json!({})).unwrap(), ZeroConfig::default());
        let given = zero(json!({
            "stage": 3, "overlap_comm": false, "reduce_bucket_size": 2e8, "allgather_bucket_size": 10,
            "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 1,
            "offload_optimizer": "cpu", "offload_param": "nvme", "nvme_path": "/nvme",
        }));
        let expected = ZeroConfig {
            stage: 3,
            overlap_comm: Some(false),
            reduce_bucket_size: 200_000_000,
            allgather_bucket_size: 10,
            stage3_prefetch_bucket_size: 0,
            stage3_param_persistence_threshold: 1,
            offload_optimizer: OffloadDevice::Cpu.into(),
            offload_param: OffloadDevice::Nvme,
            nvme_path: Some(PathBuf::from("/nvme")),
        };
        assert_eq!(given.unwrap(), expected);
    }

    #[test]
    fn all_mistakes_are_listed() {
        let e = zero(json!({
            "stage": 4, "overlap_com": true, "reduce_bucket_size": 0, "offload_optimizer": "cpu",
        }))
        .unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        let paths: Vec<_> = all.filter_map(Error::option_path).collect();
        let expected = ["stage", "reduce_bucket_size", "offload_optimizer", "overlap_com"];
        assert_eq!(paths, expected);
    }
}
