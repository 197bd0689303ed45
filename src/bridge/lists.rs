//! Operations on lists of tensors, which on CUDA are one kernel for all.

use std::ffi::c_int;

use tch::Tensor;

use super::{RawTensor, check, made, raw, raws};
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
    // SAFETY: `on_pairs` gives two arrays of this many pointers to live tensors.
    on_pairs(pairs, |to, from, count| unsafe { dsr_copy_all(to, from, count) })
}

/// Adds each tensor of `from` to its partner in `to`. Only with one format it is one kernel.
pub(crate) fn add_all<'a>(pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>) -> Result<()> {
    // SAFETY: as above.
    on_pairs(pairs, |to, from, count| unsafe { dsr_add_all(to, from, count) })
}

/// Calls `work` with the pointers of all pairs, unless there is none.
fn on_pairs<'a>(
    pairs: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>,
    work: impl FnOnce(*const RawTensor, *const RawTensor, i64) -> c_int,
) -> Result<()> {
    let (to, from): (Vec<_>, Vec<_>) =
        pairs.into_iter().map(|(to, from)| (raw(to), raw(from))).unzip();
    match to.is_empty() {
        true => Ok(()),
        false => check(work(to.as_ptr(), from.as_ptr(), to.len() as i64)),
    }
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
    // SAFETY: the array has `tensors.len()` pointers to live tensors.
    made(|out| unsafe { dsr_norms(tensors.as_ptr(), tensors.len() as i64, out) })
}
