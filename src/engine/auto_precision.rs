//! The format of a training whose precision is `"auto"`.

use crate::{config::EngineConfig, dist::ProcessGroup, error::Result, tensor::has_bf16};

/// `config` with the format that the devices of all ranks of `group` have units for, where it is
/// `"auto"`; every rank must call it.
pub(super) fn fit_precision(
    mut config: EngineConfig,
    group: &ProcessGroup,
) -> Result<EngineConfig> {
    if config.precision.is_auto {
        let lacks_bf16 = group.any(!has_bf16(group.device())?)?;
        config.precision = config.precision.on(!lacks_bf16);
    }
    Ok(config)
}
