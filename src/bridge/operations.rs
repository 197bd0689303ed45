//! The operations that this thread gives to libtorch, recorded to count the cost of a step.

use std::{
    ffi::{CStr, c_char, c_int},
    ptr,
};

use super::check;
use crate::error::Result;

unsafe extern "C" {
    fn dsr_operations_begin() -> c_int;
    fn dsr_operations_end(text: *mut *const c_char) -> c_int;
}

/// Runs `work` and lists the operations that it started on this thread: name, dtypes and shapes.
/// Operations that move no data begin with `view`.
pub(crate) fn operations<R>(work: impl FnOnce() -> R) -> Result<(R, Vec<String>)> {
    // SAFETY: it takes no argument.
    check(unsafe { dsr_operations_begin() })?;
    let result = work();
    let mut text = ptr::null();
    // SAFETY: `text` is a place for a pointer.
    check(unsafe { dsr_operations_end(&raw mut text) })?;
    // SAFETY: the call wrote a pointer to a string of this thread, which is copied here.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    Ok((result, text.lines().map(str::to_owned).collect()))
}
