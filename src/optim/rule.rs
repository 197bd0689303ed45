//! What every update rule is given: parts of units, and the numbers of a step.

use super::{adagrad, adam, lamb, lion, muon, plan::Span, sgd};
use crate::{
    config::optimizer::Algorithm,
    error::Result,
    tensor::{Kind, Tensor},
};

/// A span of a unit with its gradient and state, all flat, float32 and of one length.
pub(super) struct Part<'a> {
    pub(super) param: Tensor,
    /// May be overwritten.
    pub(super) grad: Tensor,
    /// In the order of [`super::plan::state_names`].
    pub(super) state: Vec<Tensor>,
    pub(super) span: &'a Span,
}

/// The numbers of one step for the parts of one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    /// Counts from 1.
    pub(super) step: u64,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    /// The first is the momentum of rules that have one beta.
    pub(super) betas: (f64, f64),
    /// What gradients are to be divided by.
    pub(super) grad_scale: f64,
}

impl Numbers {
    /// What the averages of a start at zero are to be divided by.
    pub(super) fn bias_corrections(&self) -> (f64, f64) {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        (correction(self.betas.0), correction(self.betas.1))
    }

    /// `grad_scale` as fused kernels take it: `None` for an exact 1, which would only cost a pass.
    pub(super) fn scale_like(&self, like: &Tensor) -> Option<Tensor> {
        (self.grad_scale != 1.0).then(|| scalar(self.grad_scale, like))
    }

    /// Divides a gradient in place.
    pub(super) fn unscale(&self, grad: &mut Tensor) {
        if self.grad_scale != 1.0 {
            *grad /= self.grad_scale;
        }
    }
}

/// A float32 scalar beside `like`.
pub(super) fn scalar(value: f64, like: &Tensor) -> Tensor {
    Tensor::full([0i64; 0], value, (Kind::Float, like.device()))
}

/// One step of `rule` on each part.
///
/// Panics where libtorch refuses, to be called under [`crate::tensor::guard`].
pub(super) fn update(rule: &Algorithm, parts: &mut [Part<'_>], numbers: &Numbers) -> Result<()> {
    match rule {
        Algorithm::Adam(config) => adam::step(config, parts, numbers),
        Algorithm::Sgd(config) => sgd::step(config, parts, numbers),
        Algorithm::Adagrad(config) => adagrad::step(config, parts, numbers),
        Algorithm::Lamb(config) => {
            parts.iter_mut().for_each(|part| lamb::step(config, part, numbers));
            Ok(())
        }
        Algorithm::Lion(_) => {
            parts.iter_mut().for_each(|part| lion::step(part, numbers));
            Ok(())
        }
        Algorithm::Muon(config) => {
            parts.iter_mut().for_each(|part| muon::step(config, part, numbers));
            Ok(())
        }
    }
}
