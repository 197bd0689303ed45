//! Stochastic gradient descent as `torch.optim.SGD(fused=True)`: libtorch's fused kernel.
//!
//! The weight decay is a part of the gradient. The first gradient becomes the velocity as it is;
//! later ones enter it times `1 - dampening`.

use super::rule::{Hyperparameters, Part, Rule};
use crate::{
    bridge::fused::{SgdNumbers, fused_sgd},
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

    fn step(&self, parts: &mut [Part], hyperparameters: &Hyperparameters<'_>) -> Result<()> {
        step(self, parts, hyperparameters)
    }
}

fn step(config: &SgdConfig, parts: &[Part], numbers: &Hyperparameters<'_>) -> Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    let (momentum, scaling) = (numbers.betas.0, numbers.scaling);
    let parts: Vec<_> = parts.iter().map(Part::fused).collect();
    let numbers = SgdNumbers {
        lr: numbers.lr,
        weight_decay: numbers.weight_decay,
        momentum,
        dampening: config.dampening,
        nesterov: config.nesterov && momentum > 0.0,
        is_first_step: momentum > 0.0 && numbers.step == 1,
    };
    fused_sgd(&parts, numbers, scaling)
}
