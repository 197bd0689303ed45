//! The memory of a CUDA device, and the figures of libtorch's allocator of it.

use std::ffi::c_int;

use super::check;
use crate::error::Result;

unsafe extern "C" {
    fn dsr_cuda_memory(device_index: c_int, free: *mut u64, all: *mut u64) -> c_int;
    fn dsr_cuda_allocator(device_index: c_int, numbers: *mut i64) -> c_int;
}

/// The memory of a CUDA device, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CudaMemory {
    /// No process has it.
    pub(crate) free: u64,
    /// All that there is.
    pub(crate) all: u64,
}

/// The memory of a CUDA device.
pub(crate) fn cuda_memory(index: usize) -> Result<CudaMemory> {
    let (mut free, mut all) = (0, 0);
    // SAFETY: the pointers are to places for the results.
    check(unsafe { dsr_cuda_memory(index as c_int, &raw mut free, &raw mut all) })?;
    Ok(CudaMemory { free, all })
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
