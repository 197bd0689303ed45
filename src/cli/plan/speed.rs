//! The speed of the device that a plan is for: measured where it is here, published for cards.

use std::time::Duration;

use super::target::{Target, TargetKind};
use crate::{
    config::{Dtype, EngineConfig},
    engine::{
        plan::Setup,
        plan_time::{DeviceSpeed, MEASURED_SHARE},
    },
    error::Result,
    tensor::{copy_rate, product_rate},
};

/// The time that a measurement takes, about.
const MEASURED_FOR: Duration = Duration::from_millis(600);

/// The speed of a target in each format of products.
pub(super) struct TargetSpeed(Vec<(Dtype, Option<DeviceSpeed>)>);

impl TargetSpeed {
    /// Measures or looks up the speed in float32, in bf16 and in the format of `config`, for products as
    /// the model of `setup` has them.
    pub(super) fn of(target: &Target, setup: &Setup, config: &EngineConfig) -> Result<Self> {
        let dtypes = [Dtype::Fp32, Dtype::Bf16, Dtype::Fp16];
        let wanted = |dtype: &Dtype| *dtype != Dtype::Fp16 || config.precision.dtype == *dtype;
        let mut bytes = None;
        let mut speeds = Vec::new();
        for dtype in dtypes.into_iter().filter(wanted) {
            let speed = match target.kind {
                TargetKind::Unknown => None,
                TargetKind::Card(gpu) => {
                    DeviceSpeed::of(&gpu, dtype, config.numerics.matmul_precision)
                }
                TargetKind::Here => measured(target, setup, dtype, &mut bytes)?,
            };
            speeds.push((dtype, speed));
        }
        Ok(Self(speeds))
    }

    /// The speed with products of `dtype`, where it is known.
    pub(super) fn with(&self, dtype: Dtype) -> Option<DeviceSpeed> {
        self.0.iter().find(|(known, _)| *known == dtype).and_then(|(_, speed)| *speed)
    }
}

/// The speed of this machine with products of `dtype`; `bytes` is measured once.
fn measured(
    target: &Target,
    setup: &Setup,
    dtype: Dtype,
    bytes: &mut Option<f64>,
) -> Result<Option<DeviceSpeed>> {
    let Some((inputs, outputs)) = setup.typical_matrix() else { return Ok(None) };
    let bytes = match *bytes {
        Some(bytes) => bytes,
        None => *bytes.insert(copy_rate(target.device, MEASURED_FOR)?),
    };
    let rows = (setup.workload.rows * setup.workload.tokens).cast_signed();
    let shape = (rows, inputs, outputs);
    let flops = product_rate(target.device, dtype.into(), shape, MEASURED_FOR)?;
    Ok(Some(DeviceSpeed { flops: flops * MEASURED_SHARE, bytes }))
}
