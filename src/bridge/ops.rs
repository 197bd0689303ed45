//! Operations on tensors that tch does not offer: gradients for given output gradients, the fused
//! optimizer, and a tensor's bytes.

use std::{ffi::c_int, ptr::null_mut, slice};

use tch::{Device, Tensor};

use super::{RawTensor, check, raw};
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_grad(
        output: RawTensor,
        output_grad: RawTensor,
        inputs: *const RawTensor,
        inputs_count: i64,
        grads: *mut RawTensor,
    ) -> c_int;
    fn dsr_fused_adamw(
        params: *const RawTensor,
        grads: *const RawTensor,
        exp_avgs: *const RawTensor,
        exp_avg_sqs: *const RawTensor,
        steps: *const RawTensor,
        count: i64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: RawTensor,
    ) -> c_int;
}

fn raws<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<RawTensor> {
    tensors.into_iter().map(raw).collect()
}

/// The gradients of `output` with respect to `inputs`, weighted with `output_grad`; `None` where
/// `output` does not depend on an input. Frees the graph.
pub(crate) fn grad(
    output: &Tensor,
    output_grad: &Tensor,
    inputs: &[&Tensor],
) -> Result<Vec<Option<Tensor>>> {
    let inputs = raws(inputs.iter().copied());
    let mut grads = vec![null_mut(); inputs.len()];
    // SAFETY: every pointer is to a live tensor or array of the stated length for the whole call.
    let status = unsafe {
        dsr_grad(
            raw(output),
            raw(output_grad),
            inputs.as_ptr(),
            inputs.len() as i64,
            grads.as_mut_ptr(),
        )
    };
    check(status)?;
    // SAFETY: each pointer that is not null is a new tensor that nobody else owns.
    let own = |p: RawTensor| (!p.is_null()).then(|| unsafe { Tensor::from_ptr(p.cast()) });
    Ok(grads.into_iter().map(own).collect())
}

/// What one call of the fused AdamW changes: tensors of equal shape, `step` a float32 scalar.
pub(crate) struct AdamWTensors<'a> {
    pub(crate) param: &'a Tensor,
    pub(crate) grad: &'a Tensor,
    pub(crate) exp_avg: &'a Tensor,
    pub(crate) exp_avg_sq: &'a Tensor,
    pub(crate) step: &'a Tensor,
}

/// The numbers of one AdamW step, named as in PyTorch.
#[derive(Clone, Copy)]
pub(crate) struct AdamWNumbers {
    pub(crate) lr: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
}

/// One step of `torch.optim.AdamW(fused=True)`; gradients are first divided by `grad_scale`, a
/// float32 scalar.
pub(crate) fn fused_adamw(
    units: &[AdamWTensors<'_>],
    numbers: AdamWNumbers,
    grad_scale: Option<&Tensor>,
) -> Result<()> {
    let params = raws(units.iter().map(|u| u.param));
    let grads = raws(units.iter().map(|u| u.grad));
    let exp_avgs = raws(units.iter().map(|u| u.exp_avg));
    let exp_avg_sqs = raws(units.iter().map(|u| u.exp_avg_sq));
    let steps = raws(units.iter().map(|u| u.step));
    // SAFETY: every pointer is to a live tensor, and each array has `units.len()` entries.
    check(unsafe {
        dsr_fused_adamw(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            steps.as_ptr(),
            units.len() as i64,
            numbers.lr,
            numbers.betas.0,
            numbers.betas.1,
            numbers.weight_decay,
            numbers.eps,
            grad_scale.map_or(null_mut(), raw),
        )
    })
}

/// Runs `work` on the bytes of a contiguous tensor on the CPU, in the machine's byte order.
pub(crate) fn with_bytes<R>(tensor: &Tensor, work: impl FnOnce(&[u8]) -> R) -> Result<R> {
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        bail!(Code::Internal, "the bytes of a tensor that is not contiguous on the CPU");
    }
    let bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if bytes == 0 {
        return Ok(work(&[]));
    }
    // SAFETY: the storage of a contiguous CPU tensor holds `bytes` initialised bytes from
    // data_ptr(), and the borrow of `tensor` keeps it alive; torch writes only through the tensor.
    Ok(work(unsafe { slice::from_raw_parts(tensor.data_ptr().cast_const().cast(), bytes) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_gradient_is_weighted_with_the_gradient_of_the_output() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let unused = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let y = &x * &x;
        let grads = grad(&y, &Tensor::from_slice(&[1.0f32, 10.0]), &[&x, &unused]).unwrap();
        let dx = grads[0].as_ref().unwrap();
        assert_eq!(Vec::<f32>::try_from(dx).unwrap(), [2.0, 40.0]);
        assert!(grads[1].is_none());
    }

    /// The first step of AdamW moves by lr * sign(grad) after the decay, whatever grad_scale is.
    #[test]
    fn the_fused_adamw_steps_as_the_formula_says() {
        let cpu = (Kind::Float, Device::Cpu);
        let (param, grad) = (Tensor::ones([4], cpu), Tensor::full([4], 6.0, cpu));
        let (exp_avg, exp_avg_sq) = (Tensor::zeros([4], cpu), Tensor::zeros([4], cpu));
        let (step, scale) = (Tensor::ones([], cpu), Tensor::full([], 2.0, cpu));
        let unit = AdamWTensors {
            param: &param,
            grad: &grad,
            exp_avg: &exp_avg,
            exp_avg_sq: &exp_avg_sq,
            step: &step,
        };
        let numbers = AdamWNumbers { lr: 0.1, betas: (0.9, 0.99), weight_decay: 0.5, eps: 1e-8 };
        fused_adamw(&[unit], numbers, Some(&scale)).unwrap();
        // 1 - 0.1*0.5*1 - 0.1*1 = 0.85; float32 arithmetic, hence 1e-6.
        assert!((param.double_value(&[0]) - 0.85).abs() < 1e-6);
        assert!((exp_avg.double_value(&[0]) - 0.3).abs() < 1e-6);
    }

    #[test]
    fn bytes_are_those_of_the_storage() {
        let t = Tensor::from_slice(&[1.0f32, -2.0]);
        let bytes = with_bytes(&t, <[u8]>::to_vec).unwrap();
        assert_eq!(bytes, [1.0f32.to_ne_bytes(), (-2.0f32).to_ne_bytes()].concat());
    }
}
