//! The treatment of freed memory by mimalloc, the allocator of the whole process.
//!
//! A training step frees and asks for the same gigabytes again and again. By default they go back
//! to the kernel in between, which then clears every page anew: a fifth of the time of a step of
//! GPT-2 124M on two cores (benches/README.md).

use std::ffi::{c_int, c_long};

/// The number of this option in mimalloc 2's mi_option_t, which `libmimalloc-sys` does not name.
const PURGE_DELAY: c_int = 15;

/// Keeps freed memory; MIMALLOC_PURGE_DELAY in the environment wins. To be called before other
/// threads start.
pub(crate) fn keep_freed_memory() {
    const NEVER: c_long = -1;
    // SAFETY: this only writes a number of mimalloc's own table, within its bounds; no other thread
    // runs yet.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, NEVER) };
}
