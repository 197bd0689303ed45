//! Operations on tensors that tch does not offer: gradients for given output gradients, and a
//! tensor's bytes.

use std::{ffi::c_int, ptr::null_mut, slice};

use tch::{Device, Tensor};

use super::{RawTensor, check, raw, raws};
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_grad(
        output: RawTensor,
        output_grad: RawTensor,
        inputs: *const RawTensor,
        inputs_count: i64,
        grads: *mut RawTensor,
    ) -> c_int;
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

    #[test]
    fn bytes_are_those_of_the_storage() {
        let t = Tensor::from_slice(&[1.0f32, -2.0]);
        let bytes = with_bytes(&t, <[u8]>::to_vec).unwrap();
        assert_eq!(bytes, [1.0f32.to_ne_bytes(), (-2.0f32).to_ne_bytes()].concat());
    }
}
