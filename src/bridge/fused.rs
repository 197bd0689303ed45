//! libtorch's fused optimizers, which tch does not offer: one call for a flat part.
//!
//! The tensors have one shape and are float32, as is `step`, a scalar that counts
//! from 1. Gradients are first divided by `grad_scale`, a scalar too, and may be overwritten.

use std::{ffi::c_int, ptr};

use tch::Tensor;

use super::{RawTensor, check, raw};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_fused_adam(
        param: RawTensor,
        grad: RawTensor,
        exp_avg: RawTensor,
        exp_avg_sq: RawTensor,
        step: RawTensor,
        decoupled: bool,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: RawTensor,
    ) -> c_int;
    fn dsr_fused_sgd(
        param: RawTensor,
        grad: RawTensor,
        momentum_buffer: RawTensor,
        lr: f64,
        weight_decay: f64,
        momentum: f64,
        dampening: f64,
        nesterov: bool,
        is_first_step: bool,
        grad_scale: RawTensor,
    ) -> c_int;
    fn dsr_fused_adagrad(
        param: RawTensor,
        grad: RawTensor,
        sum: RawTensor,
        step: RawTensor,
        lr: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: RawTensor,
    ) -> c_int;
}

/// The pointer to a tensor, or null for none.
fn raw_or_null(tensor: Option<&Tensor>) -> RawTensor {
    tensor.map_or(ptr::null_mut(), raw)
}

/// What one step of Adam changes.
pub(crate) struct AdamTensors<'a> {
    pub(crate) param: &'a Tensor,
    pub(crate) grad: &'a Tensor,
    pub(crate) exp_avg: &'a Tensor,
    pub(crate) exp_avg_sq: &'a Tensor,
}

/// The numbers of one step of Adam, named as in PyTorch; `decoupled` makes it AdamW.
#[derive(Clone, Copy)]
pub(crate) struct AdamNumbers {
    pub(crate) decoupled: bool,
    pub(crate) lr: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// One step of `torch.optim.Adam(fused=True)` or AdamW.
pub(crate) fn fused_adam(
    tensors: &AdamTensors<'_>,
    step: &Tensor,
    numbers: AdamNumbers,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    // SAFETY: every pointer is to a live tensor, the last may be null.
    check(unsafe {
        dsr_fused_adam(
            raw(tensors.param),
            raw(tensors.grad),
            raw(tensors.exp_avg),
            raw(tensors.exp_avg_sq),
            raw(step),
            numbers.decoupled,
            numbers.lr,
            numbers.betas.0,
            numbers.betas.1,
            numbers.weight_decay,
            numbers.eps,
            raw_or_null(grad_scale),
        )
    })
}

/// What one step of SGD changes; the buffer is `None` with a momentum of 0.
pub(crate) struct SgdTensors<'a> {
    pub(crate) param: &'a Tensor,
    pub(crate) grad: &'a Tensor,
    pub(crate) momentum_buffer: Option<&'a Tensor>,
}

/// The numbers of one step of SGD, named as in PyTorch.
#[derive(Clone, Copy)]
pub(crate) struct SgdNumbers {
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) momentum: f64,
    pub(crate) dampening: f64,
    pub(crate) nesterov: bool,
    /// Whether the gradient becomes the buffer as it is.
    pub(crate) is_first_step: bool,
}

/// One step of `torch.optim.SGD(fused=True)`.
pub(crate) fn fused_sgd(
    tensors: &SgdTensors<'_>,
    numbers: SgdNumbers,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    // SAFETY: every pointer is to a live tensor; the buffer and the last may be null.
    check(unsafe {
        dsr_fused_sgd(
            raw(tensors.param),
            raw(tensors.grad),
            raw_or_null(tensors.momentum_buffer),
            numbers.lr,
            numbers.weight_decay,
            numbers.momentum,
            numbers.dampening,
            numbers.nesterov,
            numbers.is_first_step,
            raw_or_null(grad_scale),
        )
    })
}

/// What one step of Adagrad changes; `sum` is that of the gradient's squares.
pub(crate) struct AdagradTensors<'a> {
    pub(crate) param: &'a Tensor,
    pub(crate) grad: &'a Tensor,
    pub(crate) sum: &'a Tensor,
}

/// The numbers of one step of Adagrad, named as in PyTorch.
#[derive(Clone, Copy)]
pub(crate) struct AdagradNumbers {
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// One step of `torch.optim.Adagrad(fused=True)`.
pub(crate) fn fused_adagrad(
    tensors: &AdagradTensors<'_>,
    step: &Tensor,
    numbers: AdagradNumbers,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    // SAFETY: every pointer is to a live tensor, the last may be null.
    check(unsafe {
        dsr_fused_adagrad(
            raw(tensors.param),
            raw(tensors.grad),
            raw(tensors.sum),
            raw(step),
            numbers.lr,
            numbers.weight_decay,
            numbers.eps,
            raw_or_null(grad_scale),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// The first step of AdamW moves by lr * sign(grad) after the decay, whatever grad_scale is.
    #[test]
    fn the_fused_adamw_steps_as_the_formula_says() {
        let cpu = (Kind::Float, Device::Cpu);
        let (param, grad) = (Tensor::ones([4], cpu), Tensor::full([4], 6.0, cpu));
        let (exp_avg, exp_avg_sq) = (Tensor::zeros([4], cpu), Tensor::zeros([4], cpu));
        let (step, scale) = (Tensor::ones([], cpu), Tensor::full([], 2.0, cpu));
        let numbers = AdamNumbers {
            decoupled: true,
            lr: 0.1,
            betas: (0.9, 0.99),
            weight_decay: 0.5,
            eps: 1e-8,
        };
        let tensors =
            AdamTensors { param: &param, grad: &grad, exp_avg: &exp_avg, exp_avg_sq: &exp_avg_sq };
        fused_adam(&tensors, &step, numbers, Some(&scale)).unwrap();
        // 1 - 0.1*0.5*1 - 0.1*1 = 0.85; float32 arithmetic, hence 1e-6.
        assert!((param.double_value(&[0]) - 0.85).abs() < 1e-6);
        assert!((exp_avg.double_value(&[0]) - 0.3).abs() < 1e-6);
    }
}
