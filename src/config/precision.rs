//! Number formats: of the model, of the gradients, and the loss scale that fp16 needs.
//!
//! bf16 and fp16 are mixed precision (Micikevicius et al. 2018): the model computes in 16 bits, the
//! optimizer updates float32 master weights. Names and defaults are DeepSpeed's, with one
//! difference: gradients are accumulated and reduced in float32 unless told otherwise, where
//! DeepSpeed uses the model's format.

use crate::error::{Code, Error, Result};

/// A floating-point format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// float32.
    Fp32,
    /// bfloat16: the range of float32 with 8 bits of precision.
    Bf16,
    /// float16: 11 bits of precision up to 65504.
    Fp16,
}

impl Dtype {
    /// All of them by their names in options.
    pub const NAMES: &'static [(&'static str, Self)] =
        &[("fp32", Self::Fp32), ("bf16", Self::Bf16), ("fp16", Self::Fp16)];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }

    /// Bytes of an element.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::Fp32 => 4,
            Self::Bf16 | Self::Fp16 => 2,
        }
    }
}

/// What an engine computes in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrecisionConfig {
    /// The format of parameters and activations. With 16 bits there are float32 master weights.
    pub dtype: Dtype,
    /// The format in which the gradients of micro batches are added up.
    pub grad_accum_dtype: Dtype,
    /// The format in which gradients travel between ranks.
    pub communication_data_type: Dtype,
    /// What the loss is multiplied by before the backward pass.
    pub loss_scale: LossScale,
}

impl PrecisionConfig {
    /// This format with everything else by default.
    pub fn new(dtype: Dtype) -> Self {
        let loss_scale = match dtype {
            Dtype::Fp16 => LossScale::Dynamic(DynamicLossScale::default()),
            Dtype::Fp32 | Dtype::Bf16 => LossScale::None,
        };
        Self {
            dtype,
            grad_accum_dtype: Dtype::Fp32,
            communication_data_type: Dtype::Fp32,
            loss_scale,
        }
    }

    /// Whether the optimizer updates float32 copies of the parameters.
    pub fn has_master_weights(&self) -> bool {
        self.dtype != Dtype::Fp32
    }

    /// Refuses a sum of gradients in a format that is neither float32 nor the model's.
    ///
    /// # Errors
    /// [`Code::BadValue`].
    pub fn check(&self) -> Result<()> {
        let Self { dtype, grad_accum_dtype, .. } = *self;
        if grad_accum_dtype == Dtype::Fp32 || grad_accum_dtype == dtype {
            return Ok(());
        }
        let allowed = match dtype {
            Dtype::Fp32 => "\"fp32\"".to_owned(),
            _ => format!("\"fp32\" or \"{}\"", dtype.name()),
        };
        let message = format!(
            "`precision.grad_accum_dtype` must be {allowed} with {}, found \"{}\"",
            dtype.name(),
            grad_accum_dtype.name()
        );
        Err(Error::new(Code::BadValue, message).option("grad_accum_dtype"))
    }
}

/// How the loss is scaled, so that small gradients do not vanish in fp16.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LossScale {
    /// Not at all.
    None,
    /// Always by this.
    Static(f64),
    /// By as much as the gradients allow.
    Dynamic(DynamicLossScale),
}

/// DeepSpeed's `DynamicLossScaler`: the scale halves when gradients overflow, and doubles after
/// `loss_scale_window` steps without.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DynamicLossScale {
    /// The scale starts at two to the power of this.
    pub initial_scale_power: u32,
    /// Steps without overflow after which the scale doubles.
    pub loss_scale_window: u64,
    /// Overflows that are waited for before the scale halves; each of them skips its step.
    pub hysteresis: u32,
    /// Whether a step without overflow brings `hysteresis` back, rather than a growth of the scale.
    pub consecutive_hysteresis: bool,
    /// The scale never falls below this; a further overflow ends the training.
    pub min_loss_scale: f64,
}

impl DynamicLossScale {
    /// The scale of the first step.
    pub fn initial_scale(&self) -> f64 {
        2f64.powi(self.initial_scale_power as i32)
    }

    /// Refuses a start below the minimum.
    ///
    /// # Errors
    /// [`Code::BadValue`].
    pub fn check(&self) -> Result<()> {
        if self.initial_scale() >= self.min_loss_scale {
            return Ok(());
        }
        let message = format!(
            "the scale would start at 2^{} = {}, below `min_loss_scale` {}",
            self.initial_scale_power,
            self.initial_scale(),
            self.min_loss_scale
        );
        Err(Error::new(Code::BadValue, message).option("initial_scale_power"))
    }
}

impl Default for DynamicLossScale {
    fn default() -> Self {
        Self {
            initial_scale_power: 16,
            loss_scale_window: 1000,
            hysteresis: 2,
            consecutive_hysteresis: false,
            min_loss_scale: 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_add_up_in_float32_or_in_the_models_format() {
        let precision = |dtype, grad_accum_dtype| PrecisionConfig {
            grad_accum_dtype,
            ..PrecisionConfig::new(dtype)
        };
        precision(Dtype::Bf16, Dtype::Bf16).check().unwrap();
        precision(Dtype::Fp16, Dtype::Fp32).check().unwrap();
        let e = precision(Dtype::Bf16, Dtype::Fp16).check().unwrap_err();
        assert_eq!(
            e.message(),
            "`precision.grad_accum_dtype` must be \"fp32\" or \"bf16\" with bf16, found \"fp16\""
        );
        assert!(precision(Dtype::Fp32, Dtype::Bf16).check().is_err());
    }

    #[test]
    fn a_scale_cannot_start_below_its_minimum() {
        let low =
            DynamicLossScale { initial_scale_power: 3, min_loss_scale: 16.0, ..Default::default() };
        assert!(low.check().unwrap_err().message().contains("2^3 = 8"));
        DynamicLossScale::default().check().unwrap();
    }
}
