//! Stochastic gradient descent as `torch.optim.SGD(fused=True)`: libtorch's fused kernel.
//!
//! The weight decay is a part of the gradient. The first gradient becomes the velocity as it is;
//! later ones enter it times `1 - dampening`.

use super::rule::{Numbers, Part};
use crate::{
    bridge::fused::{SgdNumbers, SgdTensors, fused_sgd},
    config::optimizer::SgdConfig,
    error::Result,
};

pub(super) fn step(config: &SgdConfig, part: &mut Part, numbers: &Numbers) -> Result<()> {
    let momentum = numbers.betas.0;
    let scale = numbers.scale_like(&part.param);
    let tensors = SgdTensors {
        param: &part.param,
        grad: &part.grad,
        momentum_buffer: part.state.first().filter(|_| momentum > 0.0),
    };
    let numbers = SgdNumbers {
        lr: numbers.lr,
        weight_decay: numbers.weight_decay,
        momentum,
        dampening: config.dampening,
        nesterov: config.nesterov && momentum > 0.0,
        is_first_step: momentum > 0.0 && numbers.step == 1,
    };
    fused_sgd(&tensors, numbers, scale.as_ref())
}
