//! libtorch's settings that hold for the whole process, the environment that it reads them from, and
//! the figures of CUDA's allocator.

use std::ffi::{CStr, c_int};

use super::check;
use crate::error::Result;

unsafe extern "C" {
    fn dsr_set_matmul_precision(precision: c_int) -> c_int;
    fn dsr_set_deterministic(is_on: bool) -> c_int;
    fn dsr_cublas_repeats() -> bool;
    fn dsr_cuda_memory(device_index: c_int, bytes: *mut u64) -> c_int;
    fn dsr_cuda_allocator(device_index: c_int, numbers: *mut i64) -> c_int;
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

/// All memory of a CUDA device, in bytes.
pub(crate) fn cuda_memory(index: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: the pointer is to a place for the result.
    check(unsafe { dsr_cuda_memory(index as c_int, &raw mut bytes) })?;
    Ok(bytes)
}

/// The figures of libtorch's allocator of a CUDA device, in this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllocatorUse {
    /// Bytes of tensors, rounded up to the allocator's blocks.
    pub allocated: u64,
    /// The most of them so far.
    pub max_allocated: u64,
    /// Bytes taken from the device, used or kept for later: what decides whether more fits.
    pub reserved: u64,
    /// The most of them so far.
    pub max_reserved: u64,
    /// Allocations for which everything that was kept had to be given back first.
    pub num_alloc_retries: u64,
    /// Allocations that failed all the same.
    pub num_ooms: u64,
}

/// The figures of a CUDA device.
pub(crate) fn cuda_allocator(index: usize) -> Result<AllocatorUse> {
    let mut numbers = [0; 6];
    // SAFETY: the pointer is to a place for six numbers.
    check(unsafe { dsr_cuda_allocator(index as c_int, numbers.as_mut_ptr()) })?;
    let [allocated, max_allocated, reserved, max_reserved, num_alloc_retries, num_ooms] =
        numbers.map(|number: i64| u64::try_from(number).unwrap_or(0));
    Ok(AllocatorUse {
        allocated,
        max_allocated,
        reserved,
        max_reserved,
        num_alloc_retries,
        num_ooms,
    })
}
