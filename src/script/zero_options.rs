//! The option `zero` of `init_engine`, DeepSpeed's `zero_optimization`.

use super::options::Options;
use crate::config::{OffloadDevice, ZeroConfig};

/// Reads `zero`; stage 0 where it is absent.
pub(super) fn read(o: &mut Options<'_>) -> ZeroConfig {
    o.map("zero", details).unwrap_or_default()
}

/// Sizes are taken at every stage, so that a recipe can try one stage after another.
fn details(o: &mut Options<'_>) -> ZeroConfig {
    let default = ZeroConfig::default();
    let config = ZeroConfig {
        stage: o.get("stage").range(0..=3).or(default.stage),
        overlap_comm: o.get("overlap_comm").optional(),
        reduce_bucket_size: o.get("reduce_bucket_size").range(1..).or(default.reduce_bucket_size),
        allgather_bucket_size: o
            .get("allgather_bucket_size")
            .range(1..)
            .or(default.allgather_bucket_size),
        stage3_prefetch_bucket_size: o
            .get("stage3_prefetch_bucket_size")
            .or(default.stage3_prefetch_bucket_size),
        stage3_param_persistence_threshold: o
            .get("stage3_param_persistence_threshold")
            .or(default.stage3_param_persistence_threshold),
        offload_optimizer: o
            .choice("offload_optimizer", OffloadDevice::NAMES)
            .or(default.offload_optimizer),
        offload_param: o.choice("offload_param", OffloadDevice::NAMES).or(default.offload_param),
        nvme_path: o.get("nvme_path").optional(),
    };
    o.check(config.check());
    config
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        error::{Error, Result},
        script::options,
    };

    fn zero(source: &str) -> Result<ZeroConfig> {
        let map = rhai::Engine::new().eval(&format!("#{{ zero: {source} }}")).unwrap();
        options::read("init_engine", &map, read)
    }

    #[test]
    fn deepspeeds_names_and_defaults() {
        assert_eq!(zero("#{}").unwrap(), ZeroConfig::default());
        let given = zero(
            r#"#{ stage: 3, overlap_comm: false, reduce_bucket_size: 2e8, allgather_bucket_size: 10,
                  stage3_prefetch_bucket_size: 0, stage3_param_persistence_threshold: 1,
                  offload_optimizer: "cpu", offload_param: "nvme", nvme_path: "/nvme" }"#,
        );
        let expected = ZeroConfig {
            stage: 3,
            overlap_comm: Some(false),
            reduce_bucket_size: 200_000_000,
            allgather_bucket_size: 10,
            stage3_prefetch_bucket_size: 0,
            stage3_param_persistence_threshold: 1,
            offload_optimizer: OffloadDevice::Cpu,
            offload_param: OffloadDevice::Nvme,
            nvme_path: Some(PathBuf::from("/nvme")),
        };
        assert_eq!(given.unwrap(), expected);
    }

    #[test]
    fn all_mistakes_are_listed() {
        let e = zero(
            r#"#{ stage: 4, overlap_com: true, reduce_bucket_size: 0, offload_optimizer: "cpu" }"#,
        )
        .unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        let paths: Vec<_> = all.filter_map(Error::option_path).collect();
        let expected = ["stage", "reduce_bucket_size", "offload_optimizer", "overlap_com"];
        assert_eq!(paths, expected.map(|name| format!("zero.{name}")));
    }
}
