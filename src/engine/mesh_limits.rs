//! Options and models that no mesh of ranks takes.

use super::placement::Placement;
use crate::{
    config::{EngineConfig, MeshConfig, OptimizerConfig, optimizer::Algorithm},
    error::{Code, Error, Result},
    model::{Adapter, Model, own_layers_stay_whole},
};

/// Refuses a mesh that cannot divide the layers of a model of a family.
///
/// # Errors
/// [`Code::BadValue`] with the numbers.
pub fn check_division(model: &Model, mesh: MeshConfig) -> Result<()> {
    Placement::of(model, mesh.pipeline)?;
    model.check_sharing(mesh.tensor_parallel.autotp_size)
}

/// Refuses a mesh for layers of a recipe's own.
///
/// # Errors
/// [`Code::BadValue`].
pub fn check_own_layers(mesh: MeshConfig) -> Result<()> {
    divider(mesh).map_or(Ok(()), |option| Err(own_layers_stay_whole().option(option)))
}

/// The option that puts a model on several ranks; `None` where none does.
fn divider(MeshConfig { pipeline, tensor_parallel }: MeshConfig) -> Option<&'static str> {
    match (pipeline.stages, tensor_parallel.autotp_size) {
        (1, 1) => None,
        (1, _) => Some("tensor_parallel.autotp_size"),
        _ => Some("pipeline.stages"),
    }
}

/// Refuses what does not go with stages, or with ranks that share layers.
pub(super) fn check_mesh(model: &Model, config: &EngineConfig) -> Result<()> {
    let Some(option) = divider(config.mesh) else { return Ok(()) };
    let ranks = config.mesh.tensor_parallel.autotp_size;
    if config.monitor.flops_profiler.is_some() {
        let what =
            "the flops profiler measures a whole model, and each rank of this mesh has a part";
        return Err(Error::new(Code::BadValue, what).option(option));
    }
    if ranks == 1 {
        return Ok(());
    }
    if model.adapter().is_some_and(Adapter::use_dora) || model.quantization().is_some() {
        let what = "DoRA and quantized bases look at whole matrices, of which a rank has a part with tensor parallelism";
        return Err(Error::new(Code::BadValue, what).option(option));
    }
    model.check_sharing(ranks)?;
    let OptimizerConfig { algorithm, blockwise, .. } = &config.optimizer;
    if matches!(algorithm, Algorithm::Lamb(_) | Algorithm::Muon(_)) || blockwise.is_some() {
        let what = format!(
            "{} looks at whole parameters, of which a rank has a part with tensor parallelism",
            config.optimizer.name()
        );
        return Err(Error::new(Code::BadValue, what).option("optimizer.type"));
    }
    Ok(())
}
