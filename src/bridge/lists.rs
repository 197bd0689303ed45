//! Operations on lists of tensors, which on CUDA are one kernel for all.

use std::{ffi::c_int, ptr::null_mut};

use tch::Tensor;

use super::{RawTensor, check, raws};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_copy_all(to: *const RawTensor, from: *const RawTensor, count: i64) -> c_int;
    fn dsr_add_all(to: *const RawTensor, from: *const RawTensor, count: i64) -> c_int;
    fn dsr_zero_all(tensors: *const RawTensor, count: i64) -> c_int;
    fn dsr_norms(tensors: *const RawTensor, count: i64, out: *mut RawTensor) -> c_int;
}

/// Copies each tensor of `from` over its partner in `to`, rounded to the format of that.
pub(crate) fn copy_all<'a>(
    pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>,
) -> Result<()> {
    let (to, from): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    if to.is_empty() {
        return Ok(());
    }
    let (to, from) = (raws(to), raws(from));
    // SAFETY: both arrays have `to.len()` pointers to live tensors.
    check(unsafe { dsr_copy_all(to.as_ptr(), from.as_ptr(), to.len() as i64) })
}

/// Adds each tensor of `from` to its partner in `to`. Only with one format it is one kernel.
pub(crate) fn add_all<'a>(pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<()> {
    let (to, from): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    if to.is_empty() {
        return Ok(());
    }
    let (to, from) = (raws(to), raws(from));
    // SAFETY: both arrays have `to.len()` pointers to live tensors.
    check(unsafe { dsr_add_all(to.as_ptr(), from.as_ptr(), to.len() as i64) })
}

/// Sets all elements to 0.
pub(crate) fn zero_all<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<()> {
    let tensors = raws(tensors);
    if tensors.is_empty() {
        return Ok(());
    }
    // SAFETY: the array has `tensors.len()` pointers to live tensors.
    check(unsafe { dsr_zero_all(tensors.as_ptr(), tensors.len() as i64) })
}

/// The Euclidean norms, float64 `[tensors]`, of tensors on one device, of which there is at least
/// one.
pub(crate) fn norms<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    let tensors = raws(tensors);
    let mut out = null_mut();
    // SAFETY: the array has `tensors.len()` pointers to live tensors, and `out` is a place.
    check(unsafe { dsr_norms(tensors.as_ptr(), tensors.len() as i64, &raw mut out) })?;
    // SAFETY: the call made a tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}
