//! The kind of libtorch, the device of a thread, the properties of a CUDA device: the Rust side of
//! `native/device.cpp`.

use std::{
    ffi::{CStr, c_char, c_int},
    ptr,
};

use super::check;
use crate::error::{Code, Error, Result};

unsafe extern "C" {
    fn dsr_is_built_for_cuda() -> bool;
    fn dsr_cuda_use(index: c_int) -> c_int;
    fn dsr_cuda_properties(
        index: c_int,
        name: *mut *const c_char,
        major: *mut c_int,
        minor: *mut c_int,
    ) -> c_int;
    fn dsr_cuda_uses_tf32(uses: *mut bool) -> c_int;
    fn dsr_libtorch_version() -> *const c_char;
    fn dsr_cuda_versions(cuda: *mut i64, cudnn: *mut i64, nccl: *mut *const c_char) -> c_int;
}

/// Name and compute capability of a CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Properties {
    pub(crate) name: String,
    /// Its compute capability.
    pub(crate) capability: (i32, i32),
}

/// The versions of CUDA's libraries, as people write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) cuda: String,
    pub(crate) cudnn: String,
    pub(crate) nccl: String,
}

/// Whether this is a libtorch for CUDA.
pub(crate) fn is_built_for_cuda() -> bool {
    // SAFETY: it returns a constant.
    unsafe { dsr_is_built_for_cuda() }
}

/// Makes a CUDA device the one that this thread works on where no other is named.
pub(crate) fn use_cuda(index: usize) -> Result<()> {
    let index = int(index)?;
    // SAFETY: libtorch checks the number.
    check(unsafe { dsr_cuda_use(index) })
}

/// The properties of the CUDA device `index`.
pub(crate) fn properties(index: usize) -> Result<Properties> {
    let index = int(index)?;
    let (mut name, mut major, mut minor) = (ptr::null(), 0, 0);
    // SAFETY: the pointers are to variables that live until the call returns.
    check(unsafe { dsr_cuda_properties(index, &raw mut name, &raw mut major, &raw mut minor) })?;
    // SAFETY: the call wrote a string that is this thread's until its next call.
    let name = unsafe { text(name) };
    Ok(Properties { name, capability: (major, minor) })
}

/// Whether products of float32 on CUDA may round to TF32.
pub(crate) fn uses_tf32() -> Result<bool> {
    let mut uses = false;
    // SAFETY: the pointer is to a variable that lives until the call returns.
    check(unsafe { dsr_cuda_uses_tf32(&raw mut uses) })?;
    Ok(uses)
}

/// The version of libtorch.
pub(crate) fn libtorch_version() -> String {
    // SAFETY: it returns a string that is part of the program.
    unsafe { text(dsr_libtorch_version()) }
}

/// The versions of CUDA's libraries; an error where this is a libtorch for the CPU.
pub(crate) fn versions() -> Result<Versions> {
    let (mut cuda, mut cudnn, mut nccl) = (0, 0, ptr::null());
    // SAFETY: the pointers are to variables that live until the call returns.
    check(unsafe { dsr_cuda_versions(&raw mut cuda, &raw mut cudnn, &raw mut nccl) })?;
    // SAFETY: the call wrote a string that is this thread's until its next call.
    let nccl = unsafe { text(nccl) };
    Ok(Versions {
        cuda: format!("{}.{}", cuda / 1000, cuda % 1000 / 10),
        cudnn: format!("{}.{}.{}", cudnn / 10_000, cudnn % 10_000 / 100, cudnn % 100),
        nccl,
    })
}

/// A copy of a C string.
///
/// # Safety
/// `start` must be that of a string that lives until this returns.
unsafe fn text(start: *const c_char) -> String {
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(start) }.to_string_lossy().into_owned()
}

fn int(index: usize) -> Result<c_int> {
    c_int::try_from(index)
        .map_err(|_| Error::new(Code::BadValue, format!("{index} is too large for a device")))
}
