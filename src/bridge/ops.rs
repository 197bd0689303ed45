//! Operations on tensors that tch does not offer: products into a tensor of another format, the
//! gradients of a GPU's RMS norm, and a tensor's bytes.

use std::{ffi::c_int, ptr::null_mut, slice};

use tch::{Device, Tensor};

use super::{RawTensor, check, made, raw};
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_product(out: RawTensor, a: RawTensor, b: RawTensor, beta: f64, alpha: f64) -> c_int;
    fn dsr_rms_norm_backward(
        grad: RawTensor,
        input: RawTensor,
        reciprocal: RawTensor,
        weight: RawTensor,
        dinput: *mut RawTensor,
        dweight: *mut RawTensor,
    ) -> c_int;
}

/// `out = beta * out + alpha * a @ b`, where `out` is only written if `beta` is 0. The format of
/// `out` may be wider than that of the matrices: on CUDA no product is rounded in between.
pub(crate) fn product(
    out: &Tensor,
    (a, b): (&Tensor, &Tensor),
    beta: f64,
    alpha: f64,
) -> Result<()> {
    // SAFETY: every pointer is to a live tensor for the whole call.
    check(unsafe { dsr_product(raw(out), raw(a), raw(b), beta, alpha) })
}

/// The gradients of the input and of the weight of libtorch's fused RMS norm, which a GPU has; its
/// forward pass gave `reciprocal`.
pub(crate) fn rms_norm_backward(
    grad: &Tensor,
    input: &Tensor,
    reciprocal: &Tensor,
    weight: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut dweight: RawTensor = null_mut();
    let from = [grad, input, reciprocal, weight].map(raw);
    let dinput = made(|dinput| {
        let [grad, input, reciprocal, weight] = from;
        // SAFETY: every pointer is to a live tensor, and both places are for a pointer.
        unsafe { dsr_rms_norm_backward(grad, input, reciprocal, weight, dinput, &raw mut dweight) }
    })?;
    // SAFETY: the call succeeded and has put a new tensor there that nobody else owns.
    Ok((dinput, unsafe { Tensor::from_ptr(dweight.cast()) }))
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
    use tch::Kind;

    use super::*;

    #[test]
    fn a_product_is_added_to_what_is_there() {
        let (a, b) = (Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[3.0f32, 4.0]));
        let (a, b) = (a.view([1, 2]), b.view([2, 1]));
        for (out_kind, kind) in [
            (Kind::Float, Kind::Float),
            (Kind::Float, Kind::BFloat16),
            (Kind::BFloat16, Kind::BFloat16),
        ] {
            let out = Tensor::full([1, 1], f64::NAN, (out_kind, Device::Cpu));
            let (a, b) = (a.to_kind(kind), b.to_kind(kind));
            product(&out, (&a, &b), 0.0, 2.0).unwrap();
            assert_eq!(out.double_value(&[0, 0]), 22.0);
            product(&out, (&a, &b), 1.0, 1.0).unwrap();
            assert_eq!(out.double_value(&[0, 0]), 33.0);
        }
    }

    #[test]
    fn bytes_are_those_of_the_storage() {
        let t = Tensor::from_slice(&[1.0f32, -2.0]);
        let bytes = with_bytes(&t, <[u8]>::to_vec).unwrap();
        assert_eq!(bytes, [1.0f32.to_ne_bytes(), (-2.0f32).to_ne_bytes()].concat());
    }
}
