//! Adagrad (Duchi et al. 2011) as `torch.optim.Adagrad(fused=True)`: libtorch's fused kernel.
//!
//! The weight decay is a part of the gradient, in the numerator too (DeepSpeed's kernel for the
//! CPU has it in the sum of squares alone, so that it never decays anything).

use super::rule::{Numbers, Part, scalar};
use crate::{
    bridge::fused::{AdagradNumbers, AdagradTensors, fused_adagrad},
    config::optimizer::AdagradConfig,
    error::Result,
};

pub(super) fn step(config: &AdagradConfig, part: &mut Part, numbers: &Numbers) -> Result<()> {
    let step = scalar(numbers.step as f64, &part.param);
    let scale = numbers.scale_like(&part.param);
    let tensors = AdagradTensors { param: &part.param, grad: &part.grad, sum: &part.state[0] };
    let numbers =
        AdagradNumbers { lr: numbers.lr, weight_decay: numbers.weight_decay, eps: config.eps };
    fused_adagrad(&tensors, &step, numbers, scale.as_ref())
}
