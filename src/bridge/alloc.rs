//! The allocator of the whole process: mimalloc, the count of what Rust code holds, and the end of a
//! process whose memory the system refuses.
//!
//! A training step frees and asks for the same gigabytes again and again. By default they go back
//! to the kernel in between, which then clears every page anew: a fifth of the time of a step of
//! GPT-2 124M on two cores (benches/README.md).

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    ffi::{c_int, c_long},
    sync::{
        OnceLock,
        atomic::{AtomicIsize, AtomicUsize, Ordering},
    },
};

use mimalloc::MiMalloc;

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

/// Rust's allocator. Tensors are not counted: libtorch asks mimalloc itself.
#[derive(Debug)]
pub struct Allocator;

/// Says that the system refuses so many bytes, and returns the status to end with.
pub(crate) type Exhausted = fn(usize) -> u8;

static EXHAUSTED: OnceLock<Exhausted> = OnceLock::new();

/// Ends the process with the status of `say` where the system refuses memory to Rust code, which
/// would otherwise abort. `say` must not need memory.
pub(crate) fn on_exhausted(say: Exhausted) {
    // A second caller would say the same.
    let _ = EXHAUSTED.set(say);
}

/// A part of the count; threads have several so that they do not wait for each other's cache lines.
#[repr(align(128))]
struct Shard(AtomicIsize);

const SHARDS: usize = 32;
static HELD: [Shard; SHARDS] = [const { Shard(AtomicIsize::new(0)) }; SHARDS];

thread_local! {
    static SHARD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Bytes that Rust code holds now, where [`Allocator`] is the program's.
pub(crate) fn held() -> u64 {
    let sum: isize = HELD.iter().map(|shard| shard.0.load(Ordering::Relaxed)).sum();
    u64::try_from(sum).unwrap_or(0)
}

fn count(bytes: isize) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let shard = SHARD.get().unwrap_or_else(|| {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
        SHARD.set(Some(next));
        next
    });
    HELD[shard].0.fetch_add(bytes, Ordering::Relaxed);
}

/// Counts a block of mimalloc's, or ends the process where there is none.
fn taken(block: *mut u8, bytes: usize, counted: isize) -> *mut u8 {
    if block.is_null()
        && let Some(say) = EXHAUSTED.get()
    {
        let status = say(bytes);
        // SAFETY: this ends the process without running anything of it.
        unsafe { libc::_exit(status.into()) }
    }
    if !block.is_null() {
        count(counted);
    }
    block
}

// SAFETY: all blocks are mimalloc's, with the layouts that were asked for; counting touches none.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that mimalloc asks for.
        taken(unsafe { MiMalloc.alloc(layout) }, layout.size(), layout.size().cast_signed())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        taken(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size(), layout.size().cast_signed())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { MiMalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let more = size.cast_signed() - layout.size().cast_signed();
        // SAFETY: as above.
        taken(unsafe { MiMalloc.realloc(block, layout, size) }, size, more)
    }
}
