//! Defaults of the environment for libraries that read it when a GPU is first used.

use std::{env, ffi::CStr};

use crate::{
    bridge::{context::set_environment_default, device::is_built_for_cuda},
    fs,
};

/// The workspace with which cuBLAS repeats itself. It is what libtorch takes on an H100 anyway, and
/// 24 MB more on other GPUs; to be set for `deterministic`, it would be too late in a recipe.
const CUBLAS: (&CStr, &CStr) = (c"CUBLAS_WORKSPACE_CONFIG", c":4096:8");

/// Memory of the GPU in segments that grow: what was freed can be used for larger tensors, so that
/// batches of different lengths do not fragment it.
const ALLOCATOR: (&CStr, &CStr) = (c"PYTORCH_ALLOC_CONF", c"expandable_segments:True");

/// Sets the variables that the user has not set. To be called before other threads start.
pub(super) fn set_defaults() {
    if !is_built_for_cuda() {
        return;
    }
    set_environment_default(CUBLAS.0, CUBLAS.1);
    let older = env::var_os("PYTORCH_CUDA_ALLOC_CONF");
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    if older.is_none() && has_expandable_segments(&kernel) {
        set_environment_default(ALLOCATOR.0, ALLOCATOR.1);
    }
}

/// CUDA in Windows' subsystem for Linux has no virtual memory to grow into.
fn has_expandable_segments(kernel: &str) -> bool {
    !kernel.to_lowercase().contains("microsoft")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_do_not_grow_in_windows_subsystem() {
        assert!(has_expandable_segments("Linux version 6.8.0-45-generic (buildd@lcy02)"));
        assert!(!has_expandable_segments("Linux version 5.15.90.1-microsoft-standard-WSL2"));
    }
}
