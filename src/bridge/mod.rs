//! The only unsafe code: libtorch through C++ files of our own, for what tch does not wrap.
//!
//! `native/` holds `extern "C"` functions that `build.rs` compiles; a file has its Rust side here with
//! the same name, but for `codes` (in `decode`), `pinned` (in `stream`) and `bridge` (here). A C++
//! exception ends in the bridge: the function returns a status, the message waits on the same thread,
//! and `check` makes an [`Error`] of both. This module checks no shapes and knows no policy; its
//! callers (`tensor`, `dist`) do.
#![allow(unsafe_code)]

pub mod alloc;
pub(crate) mod attention;
pub(crate) mod autograd;
pub(crate) mod blocks;
pub(crate) mod blockwise;
pub(crate) mod bytes;
pub(crate) mod context;
pub(crate) mod cuda_memory;
pub(crate) mod decode;
pub(crate) mod device;
pub(crate) mod disk;
pub(crate) mod dist;
pub(crate) mod early;
pub(crate) mod fused;
pub(crate) mod key_ranges;
pub(crate) mod lists;
pub(crate) mod memory;
pub(crate) mod operations;
pub(crate) mod ops;
pub(crate) mod quantize;
pub(crate) mod random;
mod refusal;
pub(crate) mod rows;
pub(crate) mod storage;
pub(crate) mod stream;
pub(crate) mod texts;
pub(crate) mod trace;

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr::null_mut,
};

use tch::Tensor;

pub(crate) use self::refusal::{refusal, without_backtrace};
use crate::error::{Code, Error, Result};

/// `at::Tensor*`: a tensor as the functions of the bridge take it.
type RawTensor = *mut c_void;

/// The pointer to a tensor, alive as long as the tensor is.
fn raw(tensor: &Tensor) -> RawTensor {
    tensor.as_ptr().cast_mut().cast()
}

fn raws<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<RawTensor> {
    tensors.into_iter().map(raw).collect()
}

/// The tensor that `make` puts into its place, if it does.
fn maybe(make: impl FnOnce(*mut RawTensor) -> c_int) -> Result<Option<Tensor>> {
    let mut tensor: RawTensor = null_mut();
    check(make(&raw mut tensor))?;
    // SAFETY: what a call that succeeded has put there is null or a new tensor that nobody else owns.
    Ok((!tensor.is_null()).then(|| unsafe { Tensor::from_ptr(tensor.cast()) }))
}

/// The tensors that `make` puts into `count` places, or `None` where it leaves them empty.
fn all(count: usize, make: impl FnOnce(*mut RawTensor) -> c_int) -> Result<Option<Vec<Tensor>>> {
    let mut tensors: Vec<RawTensor> = vec![null_mut(); count];
    check(make(tensors.as_mut_ptr()))?;
    let is_made = tensors.iter().all(|tensor| !tensor.is_null());
    Ok(is_made.then(|| tensors.into_iter().map(own).collect()))
}

/// The tensor that `make` puts into its place.
fn made(make: impl FnOnce(*mut RawTensor) -> c_int) -> Result<Tensor> {
    let mut tensor: RawTensor = null_mut();
    check(make(&raw mut tensor))?;
    Ok(own(tensor))
}

/// The tensor that a call which succeeded has put into its place.
fn own(tensor: RawTensor) -> Tensor {
    // SAFETY: it is a new tensor that nobody else owns.
    unsafe { Tensor::from_ptr(tensor.cast()) }
}

// The statuses of native/bridge.h.
const OK: c_int = 0;
const OUT_OF_MEMORY: c_int = 2;

unsafe extern "C" {
    fn dsr_last_error() -> *const c_char;
}

/// Turns the status of a bridge function into a result: [`Code::Memory`] or [`Code::Torch`] with
/// libtorch's message. To be called on the thread that made the call, before the next one.
pub(crate) fn check(status: c_int) -> Result<()> {
    if status == OK {
        return Ok(());
    }
    // SAFETY: the pointer is to a string of this thread that lives until its next bridge call.
    let text = unsafe { CStr::from_ptr(dsr_last_error()) }.to_string_lossy();
    tracing::debug!("libtorch: {text}");
    Err(match status {
        OUT_OF_MEMORY => Error::new(Code::Memory, without_backtrace(&text)),
        _ => refusal(&text),
    })
}
