//! Stochastic gradient descent as `torch.optim.SGD(fused=True)`: libtorch's fused kernel.
//!
//! The weight decay is a part of the gradient. The first gradient becomes the velocity as it is;
//! later ones enter it times `1 - dampening`.

use super::rule::{Hyperparameters, Rule, SliceTensors};
use crate::{
    bridge::fused::{SgdHyperparameters, fused_sgd},
    config::optimizer::SgdConfig,
    error::Result,
};

impl Rule for SgdConfig {
    fn state_names(&self) -> &'static [&'static str] {
        if self.momentum == 0.0 { &[] } else { &["momentum_buffer"] }
    }

    fn betas(&self, betas: (f64, f64)) -> Vec<f64> {
        vec![betas.0]
    }

    fn is_fused(&self) -> bool {
        true
    }

    fn step(&self, parts: &mut [SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
        step(self, parts, hyper)
    }
}

fn step(config: &SgdConfig, parts: &[SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    let (momentum, scaling) = (hyper.betas.0, hyper.scaling);
    let parts: Vec<_> = parts.iter().map(SliceTensors::fused).collect();
    let hyper = SgdHyperparameters {
        lr: hyper.lr,
        weight_decay: hyper.weight_decay,
        momentum,
        dampening: config.dampening,
        nesterov: config.nesterov && momentum > 0.0,
        is_first_step: momentum > 0.0 && hyper.step == 1,
    };
    fused_sgd(&parts, hyper, scaling)
}
