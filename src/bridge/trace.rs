//! A trace of what libtorch does, and named ranges in it: the Rust side of `native/trace.cpp`.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    fmt::Display,
    io::{self, Read, Seek},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicBool, Ordering},
};

use tempfile::NamedTempFile;

use super::check;
use crate::error::{Code, Error, Result};

unsafe extern "C" {
    fn dsr_trace_prepare(with_cuda: bool) -> c_int;
    fn dsr_trace_start(with_cuda: bool) -> c_int;
    fn dsr_trace_stop(path: *const c_char) -> c_int;
    fn dsr_range_begin(name: *const c_char, range: *mut *mut c_void) -> c_int;
    fn dsr_range_end(range: *mut c_void);
}

/// Whether a trace runs on some thread: the rest of the time a range costs a look at this.
static RUNS: AtomicBool = AtomicBool::new(false);

/// Does ahead of a trace what is slow at the first one.
pub(crate) fn prepare(with_cuda: bool) -> Result<()> {
    // SAFETY: the call has no conditions.
    logged(|| unsafe { dsr_trace_prepare(with_cuda) })
}

/// Starts a trace of this thread, and of the work that it hands to autograd's.
pub(crate) fn start(with_cuda: bool) -> Result<()> {
    // SAFETY: the call has no conditions; libtorch refuses a second trace.
    logged(|| unsafe { dsr_trace_start(with_cuda) })?;
    RUNS.store(true, Ordering::Relaxed);
    Ok(())
}

/// Ends the trace that this thread started, and writes it to `path` as Chrome reads it. That all of
/// it could be written is not checked.
pub(crate) fn stop(path: &Path) -> Result<()> {
    RUNS.store(false, Ordering::Relaxed);
    let path = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(Code::Io, "a path with a zero character"))?;
    // SAFETY: the path lives until the call returns.
    logged(|| unsafe { dsr_trace_stop(path.as_ptr()) })
}

/// Makes a call to the profiler and puts into the log what it writes to standard error meanwhile:
/// some of its lines say ERROR where nothing is wrong.
fn logged(call: impl FnOnce() -> c_int) -> Result<()> {
    // Without a place to keep them they are shown as they are.
    let captured = Captured::begin().ok();
    let result = check(call());
    let text = captured.map_or(Ok(String::new()), Captured::end).unwrap_or_default();
    for line in text.lines() {
        if NOISE.iter().any(|noise| line.contains(noise)) {
            tracing::debug!("libtorch's profiler: {line}");
        } else {
            tracing::warn!("libtorch's profiler: {line}");
        }
    }
    result
}

/// The profiler says when it starts, that a client which does nothing was registered on another
/// thread, and that it finds no GPU.
const NOISE: [&str; 3] = ["USDT:", "External init callback must run", "gpuGetDeviceCount failed"];

/// Standard error of this process, led into a file.
struct Captured {
    file: NamedTempFile,
    stderr: OwnedFd,
}

impl Captured {
    fn begin() -> io::Result<Self> {
        let (file, stderr) = (NamedTempFile::new()?, io::stderr().as_fd().try_clone_to_owned()?);
        set_stderr(&file)?;
        Ok(Self { file, stderr })
    }

    /// Leads it back; gives what was written.
    fn end(mut self) -> io::Result<String> {
        set_stderr(&self.stderr)?;
        self.file.rewind()?;
        let mut text = Vec::new();
        self.file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

fn set_stderr(to: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: both numbers are of open files; no file of Rust's has the second one for its own.
    let set = unsafe { libc::dup2(to.as_raw_fd(), libc::STDERR_FILENO) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A part of a trace that has a name, from its making to its end.
pub(crate) struct Range(NonNull<c_void>);

/// Begins a range, where a trace runs.
pub(crate) fn range(name: impl Display) -> Option<Range> {
    if !RUNS.load(Ordering::Relaxed) {
        return None;
    }
    let name = CString::new(name.to_string()).ok()?;
    let mut range = null_mut();
    // SAFETY: the name lives until the call returns, and `range` is a place for a pointer.
    let begun = check(unsafe { dsr_range_begin(name.as_ptr(), &raw mut range) });
    // A trace without a name is better than no training.
    begun.ok().and_then(|()| NonNull::new(range)).map(Range)
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `range` and is ended once, on the thread that began it, as a
        // pointer is not sent to another.
        unsafe { dsr_range_end(self.0.as_ptr()) }
    }
}
