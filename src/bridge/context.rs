//! libtorch's settings that hold for the whole process, and the environment that it reads them from.

use std::ffi::{CStr, c_int};

use super::check;
use crate::error::Result;

unsafe extern "C" {
    fn dsr_set_matmul_precision(precision: c_int) -> c_int;
    fn dsr_set_deterministic(is_on: bool) -> c_int;
    fn dsr_cublas_repeats() -> bool;
}

/// Sets what matrix products of float32 are computed in: 0 for "highest", 1 for "high", 2 for
/// "medium".
pub(crate) fn set_matmul_precision(precision: u8) -> Result<()> {
    debug_assert!(precision <= 2);
    // SAFETY: the number is one of the three that the other side knows.
    check(unsafe { dsr_set_matmul_precision(c_int::from(precision.min(2))) })
}

/// Sets whether operations repeat themselves to the bit, and fail where they have no such form.
pub(crate) fn set_deterministic(is_on: bool) -> Result<()> {
    // SAFETY: it sets flags of libtorch's own.
    check(unsafe { dsr_set_deterministic(is_on) })
}

/// Whether `CUBLAS_WORKSPACE_CONFIG` is one with which cuBLAS repeats itself.
pub(crate) fn cublas_repeats() -> bool {
    // SAFETY: it reads the environment, which nobody changes after the start of the program.
    unsafe { dsr_cublas_repeats() }
}

/// Sets a variable that libraries of this process read later, unless it is set. To be called before
/// other threads start.
pub(crate) fn set_environment_default(name: &CStr, value: &CStr) {
    // SAFETY: both are strings that are copied, and no other thread reads the environment yet.
    unsafe { libc::setenv(name.as_ptr(), value.as_ptr(), 0) };
}
