//! libtorch's fused optimizers, which tch does not offer: one call for many flat parts.
//!
//! The tensors of a part have one shape; all are float32, as is `step`, a scalar that counts from 1.
//! Gradients may be overwritten.

use std::{ffi::c_int, ptr};

use tch::{Device, Kind, Tensor};

use super::{RawTensor, check, raw, raws};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_fused_adam(
        params: *const RawTensor,
        grads: *const RawTensor,
        exp_avgs: *const RawTensor,
        exp_avg_sqs: *const RawTensor,
        count: i64,
        step: RawTensor,
        decoupled: bool,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: RawTensor,
        found_inf: RawTensor,
    ) -> c_int;
    fn dsr_fused_sgd(
        params: *const RawTensor,
        grads: *const RawTensor,
        momentum_buffers: *const RawTensor,
        count: i64,
        lr: f64,
        weight_decay: f64,
        momentum: f64,
        dampening: f64,
        nesterov: bool,
        is_first_step: bool,
        grad_scale: RawTensor,
        found_inf: RawTensor,
    ) -> c_int;
    fn dsr_fused_adagrad(
        params: *const RawTensor,
        grads: *const RawTensor,
        sums: *const RawTensor,
        count: i64,
        step: RawTensor,
        lr: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: RawTensor,
        found_inf: RawTensor,
    ) -> c_int;
}

/// A part that is updated, with the state tensors of its rule.
pub(crate) struct FusedTensors<'a> {
    pub(crate) param: &'a Tensor,
    pub(crate) grad: &'a Tensor,
    pub(crate) state: &'a [Tensor],
}

/// The scaling of a step's gradients, as float32 scalars on the device of the step, so that the host
/// need not know them: `torch.amp.GradScaler`'s `grad_scale` and `found_inf`.
#[derive(Debug)]
pub struct Scaling {
    /// Gradients are divided by it.
    pub grad_scale: Tensor,
    /// Where it is 1, the step changes nothing, and where it is 0, it is made. Only fused kernels
    /// look at it; other rules must not be asked for a step that changes nothing.
    pub found_inf: Option<Tensor>,
}

impl Scaling {
    /// A step that is made, with its gradients divided by `grad_scale`.
    pub fn of(grad_scale: f64, device: Device) -> Result<Self> {
        let grad_scale = Tensor::f_full([0i64; 0], grad_scale, (Kind::Float, device))?;
        Ok(Self { grad_scale, found_inf: None })
    }
}

/// `grad_scale` and `found_inf`, null for none.
fn raw_scaling(scaling: Option<&Scaling>) -> (RawTensor, RawTensor) {
    let raw_or_null = |tensor: Option<&Tensor>| tensor.map_or(ptr::null_mut(), raw);
    (
        raw_or_null(scaling.map(|scaling| &scaling.grad_scale)),
        raw_or_null(scaling.and_then(|scaling| scaling.found_inf.as_ref())),
    )
}

/// The hyperparameters of one step of Adam, named as in PyTorch; `decoupled` makes it AdamW.
#[derive(Clone, Copy)]
pub(crate) struct AdamHyperparameters {
    pub(crate) decoupled: bool,
    pub(crate) lr: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// One step of `torch.optim.Adam(fused=True)` or AdamW; the state is `exp_avg` and `exp_avg_sq`.
pub(crate) fn fused_adam(
    parts: &[FusedTensors<'_>],
    step: &Tensor,
    hyper: AdamHyperparameters,
    scaling: Option<&Scaling>,
) -> Result<()> {
    let (params, grads) = params_and_grads(parts);
    let (exp_avgs, exp_avg_sqs) = (states(parts, 0), states(parts, 1));
    let (grad_scale, found_inf) = raw_scaling(scaling);
    // SAFETY: every array has `parts.len()` pointers to live tensors; the last two may be null.
    check(unsafe {
        dsr_fused_adam(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            parts.len() as i64,
            raw(step),
            hyper.decoupled,
            hyper.lr,
            hyper.betas.0,
            hyper.betas.1,
            hyper.weight_decay,
            hyper.eps,
            grad_scale,
            found_inf,
        )
    })
}

/// The hyperparameters of one step of SGD, named as in PyTorch.
#[derive(Clone, Copy)]
pub(crate) struct SgdHyperparameters {
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) momentum: f64,
    pub(crate) dampening: f64,
    pub(crate) nesterov: bool,
    /// Whether the gradient becomes the buffer as it is.
    pub(crate) is_first_step: bool,
}

/// One step of `torch.optim.SGD(fused=True)`; the state is `momentum_buffer`, or nothing with a
/// momentum of 0.
pub(crate) fn fused_sgd(
    parts: &[FusedTensors<'_>],
    hyper: SgdHyperparameters,
    scaling: Option<&Scaling>,
) -> Result<()> {
    let (params, grads) = params_and_grads(parts);
    let buffers = if hyper.momentum > 0.0 { states(parts, 0) } else { Vec::new() };
    let (grad_scale, found_inf) = raw_scaling(scaling);
    // SAFETY: every array that is not null has `parts.len()` pointers to live tensors; the last two
    // may be null.
    check(unsafe {
        dsr_fused_sgd(
            params.as_ptr(),
            grads.as_ptr(),
            if buffers.is_empty() { ptr::null() } else { buffers.as_ptr() },
            parts.len() as i64,
            hyper.lr,
            hyper.weight_decay,
            hyper.momentum,
            hyper.dampening,
            hyper.nesterov,
            hyper.is_first_step,
            grad_scale,
            found_inf,
        )
    })
}

/// The hyperparameters of one step of Adagrad, named as in PyTorch.
#[derive(Clone, Copy)]
pub(crate) struct AdagradHyperparameters {
    pub(crate) lr: f64,
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// One step of `torch.optim.Adagrad(fused=True)`; the state is the sum of the gradient's squares.
pub(crate) fn fused_adagrad(
    parts: &[FusedTensors<'_>],
    step: &Tensor,
    hyper: AdagradHyperparameters,
    scaling: Option<&Scaling>,
) -> Result<()> {
    let (params, grads) = params_and_grads(parts);
    let sums = states(parts, 0);
    let (grad_scale, found_inf) = raw_scaling(scaling);
    // SAFETY: every array has `parts.len()` pointers to live tensors; the last two may be null.
    check(unsafe {
        dsr_fused_adagrad(
            params.as_ptr(),
            grads.as_ptr(),
            sums.as_ptr(),
            parts.len() as i64,
            raw(step),
            hyper.lr,
            hyper.weight_decay,
            hyper.eps,
            grad_scale,
            found_inf,
        )
    })
}

fn params_and_grads(parts: &[FusedTensors<'_>]) -> (Vec<RawTensor>, Vec<RawTensor>) {
    (raws(parts.iter().map(|part| part.param)), raws(parts.iter().map(|part| part.grad)))
}

/// The state tensor `slot` of each part.
fn states(parts: &[FusedTensors<'_>], slot: usize) -> Vec<RawTensor> {
    raws(parts.iter().map(|part| &part.state[slot]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// One step of AdamW on two parts of ones with the gradient 6; the first elements afterwards.
    fn one_step(scaling: Option<&Scaling>) -> [f64; 2] {
        let params = [4, 7].map(|len| Tensor::ones([len], CPU));
        let grads = [4, 7].map(|len| Tensor::full([len], 6.0, CPU));
        let states = [4, 7].map(|len| [Tensor::zeros([len], CPU), Tensor::zeros([len], CPU)]);
        let hyper = AdamHyperparameters {
            decoupled: true,
            lr: 0.1,
            betas: (0.9, 0.99),
            weight_decay: 0.5,
            eps: 1e-8,
        };
        let part =
            |i: usize| FusedTensors { param: &params[i], grad: &grads[i], state: &states[i] };
        fused_adam(&[part(0), part(1)], &Tensor::ones([], CPU), hyper, scaling).unwrap();
        params.map(|param| param.double_value(&[0]))
    }

    /// The first step of AdamW moves by lr * sign(grad) after the decay, whatever grad_scale is:
    /// 1 - 0.1*0.5*1 - 0.1*1 = 0.85; float32 arithmetic, hence 1e-6.
    #[test]
    fn the_fused_adamw_steps_as_the_formula_says() {
        let scaling = Scaling::of(2.0, Device::Cpu).unwrap();
        for scaling in [None, Some(&scaling)] {
            let stepped = one_step(scaling);
            assert!(stepped.iter().all(|param| (param - 0.85).abs() < 1e-6), "{stepped:?}");
        }
    }

    #[test]
    fn what_was_found_infinite_changes_nothing() {
        let with = |found_inf| {
            let found_inf = Some(Tensor::full([], found_inf, CPU));
            one_step(Some(&Scaling { grad_scale: Tensor::ones([], CPU), found_inf }))
        };
        assert_eq!(with(1.0), [1.0; 2]);
        assert_ne!(with(0.0), [1.0; 2]);
    }
}
