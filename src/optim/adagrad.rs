//! Adagrad (Duchi et al. 2011) as `torch.optim.Adagrad(fused=True)`: libtorch's fused kernel.
//!
//! The weight decay is a part of the gradient, in the numerator too (DeepSpeed's kernel for the
//! CPU has it in the sum of squares alone, so that it never decays anything).

use super::rule::{Hyperparameters, Rule, SliceTensors, scalar};
use crate::{
    bridge::fused::{AdagradHyperparameters, fused_adagrad},
    config::optimizer::AdagradConfig,
    error::Result,
};

impl Rule for AdagradConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["sum"]
    }

    fn betas(&self, _: (f64, f64)) -> Vec<f64> {
        Vec::new()
    }

    fn is_fused(&self) -> bool {
        true
    }

    fn step(&self, parts: &mut [SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
        step(self, parts, hyper)
    }
}

fn step(config: &AdagradConfig, parts: &[SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let step = scalar(hyper.step as f64, &first.param);
    let scaling = hyper.scaling;
    let parts: Vec<_> = parts.iter().map(SliceTensors::fused).collect();
    let hyper =
        AdagradHyperparameters { lr: hyper.lr, weight_decay: hyper.weight_decay, eps: config.eps };
    fused_adagrad(&parts, &step, hyper, scaling)
}
