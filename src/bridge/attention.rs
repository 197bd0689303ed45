//! libtorch's flash attention as it is: with the log-sum-exp of the scores, and a backward pass that takes it,
//! so that results of parts of the keys can be merged.

use std::{ffi::c_int, ptr::null_mut};

use tch::Tensor;

use super::{RawTensor, check, raw};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_flash(
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        is_causal: bool,
        scale: f64,
        out: *mut RawTensor,
        sums: *mut RawTensor,
    ) -> c_int;
    fn dsr_flash_backward(
        grad: RawTensor,
        q: RawTensor,
        k: RawTensor,
        v: RawTensor,
        out: RawTensor,
        sums: RawTensor,
        is_causal: bool,
        scale: f64,
        dq: *mut RawTensor,
        dk: *mut RawTensor,
        dv: *mut RawTensor,
    ) -> c_int;
}

/// The attention of queries to keys and values, `[B, H, T, D]` each, and the log-sum-exp of its scores, float32
/// `[B, H, T]`.
pub(crate) fn flash(
    [q, k, v]: [&Tensor; 3],
    is_causal: bool,
    scale: f64,
) -> Result<(Tensor, Tensor)> {
    let mut made: [RawTensor; 2] = [null_mut(); 2];
    let [out, sums] = &mut made;
    // SAFETY: every pointer is to a live tensor, and both places are for a pointer.
    check(unsafe { dsr_flash(raw(q), raw(k), raw(v), is_causal, scale, out, sums) })?;
    let [out, sums] = made.map(own);
    Ok((out, sums))
}

/// The gradients of queries, keys and values of [`flash`], from `grad`, that of the attention; `out` and `sums`
/// may be those of more keys, and the gradients are then what these keys add.
pub(crate) fn flash_backward(
    grad: &Tensor,
    [q, k, v]: [&Tensor; 3],
    (out, sums): (&Tensor, &Tensor),
    is_causal: bool,
    scale: f64,
) -> Result<[Tensor; 3]> {
    let mut made: [RawTensor; 3] = [null_mut(); 3];
    let [dq, dk, dv] = &mut made;
    let (grad, out, sums) = (raw(grad), raw(out), raw(sums));
    let (q, k, v) = (raw(q), raw(k), raw(v));
    // SAFETY: every pointer is to a live tensor, and the three places are for a pointer.
    check(unsafe { dsr_flash_backward(grad, q, k, v, out, sums, is_causal, scale, dq, dk, dv) })?;
    Ok(made.map(own))
}

/// The tensor that a call which succeeded has put there.
fn own(tensor: RawTensor) -> Tensor {
    // SAFETY: it is a new tensor that nobody else owns.
    unsafe { Tensor::from_ptr(tensor.cast()) }
}
