//! Process groups and collectives: the Rust side of `native/dist.cpp`.
//!
//! Each type owns one C++ object and frees it. The functions trust their arguments to the extent
//! that libtorch checks them: a wrong shape is an error, not undefined behaviour. `crate::dist` is
//! the interface that the rest of dsr uses.

use std::{
    ffi::{CString, c_char, c_int, c_void},
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    os::fd::IntoRawFd,
    ptr, slice,
    time::Duration,
};

use tch::Tensor;

use super::{RawTensor, check, raw};
use crate::error::{Code, Error, Result};

type Handle = *mut c_void;

unsafe extern "C" {
    fn dsr_store_tcp(
        host: *const c_char,
        port: u16,
        server: bool,
        listener: c_int,
        prefix: *const c_char,
        timeout_ms: i64,
        bound: *mut u16,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_store_set(store: Handle, key: *const c_char, value: *const u8, size: usize) -> c_int;
    fn dsr_store_get(
        store: Handle,
        key: *const c_char,
        found: *mut bool,
        value: *mut *const u8,
        size: *mut usize,
    ) -> c_int;
    fn dsr_store_claim(
        store: Handle,
        key: *const c_char,
        wanted: *const u8,
        wanted_size: usize,
        value: *mut *const u8,
        size: *mut usize,
    ) -> c_int;
    fn dsr_store_join(
        store: Handle,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        present: *mut bool,
    ) -> c_int;
    fn dsr_store_free(store: Handle);
    fn dsr_group_new(
        store: Handle,
        rank: c_int,
        size: c_int,
        cuda_index: c_int,
        interface: *const c_char,
        address: *const c_char,
        timeout_ms: i64,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_group_sub(
        group: Handle,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_group_free(group: Handle);
    fn dsr_all_reduce(
        group: Handle,
        tensor: RawTensor,
        op: c_int,
        is_async: bool,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_all_gather(
        group: Handle,
        output: RawTensor,
        shard: RawTensor,
        is_async: bool,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_reduce_scatter(
        group: Handle,
        shard: RawTensor,
        input: RawTensor,
        op: c_int,
        is_async: bool,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_broadcast(
        group: Handle,
        tensor: RawTensor,
        root: c_int,
        is_async: bool,
        out: *mut Handle,
    ) -> c_int;
    fn dsr_barrier(group: Handle, is_async: bool, out: *mut Handle) -> c_int;
    fn dsr_work_wait(work: Handle, time_ms: i64, done: *mut bool) -> c_int;
    fn dsr_work_is_completed(work: Handle, completed: *mut bool) -> c_int;
    fn dsr_work_free(work: Handle);
}

/// How a collective runs: `Sync` may use the caller's CUDA stream, `Async` runs beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Sync,
    Async,
}

/// How values of all ranks become one, by the numbers of c10d's `ReduceOp::RedOpType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum ReduceOp {
    /// The sum.
    Sum = 0,
    /// The sum divided by the world size; for floating-point tensors.
    Avg = 1,
    /// The least.
    Min = 3,
    /// The greatest.
    Max = 4,
}

/// Where the ranks of a group meet, and what they leave there for each other: keys and values.
pub(crate) struct Store(Handle);

// SAFETY: c10d's stores guard each operation with a mutex of their own, and belong to no thread.
unsafe impl Send for Store {}

impl Store {
    /// The store that another process hosts at `host:port`, for which it waits.
    pub(crate) fn tcp(address: (&str, u16), prefix: &str, timeout: Duration) -> Result<Self> {
        Self::open(address, None, false, prefix, timeout).map(|(store, _)| store)
    }

    /// A store that this process hosts at `host:port`, where port 0 is any free one, and its port.
    /// At an address of the loopback it listens there alone, else on all of this machine's.
    pub(crate) fn host(
        (host, port): (&str, u16),
        prefix: &str,
        timeout: Duration,
    ) -> Result<(Self, u16)> {
        let found: Vec<_> = (host, port).to_socket_addrs().into_iter().flatten().collect();
        let is_own = |address: &&SocketAddr| TcpListener::bind((address.ip(), 0)).is_ok();
        // The store would wait for itself at an address that is another machine's.
        let Some(here) = found.iter().find(is_own) else {
            bail!(Code::Dist, "{host} is not an address of this machine");
        };
        if !here.ip().is_loopback() {
            return Self::open((&here.ip().to_string(), port), None, true, prefix, timeout);
        }
        let failed = |e| Error::new(Code::Torch, format!("{e}"));
        let listener = TcpListener::bind(here).map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        Self::open((&here.ip().to_string(), port), Some(listener), true, prefix, timeout)
    }

    fn open(
        (host, port): (&str, u16),
        listener: Option<TcpListener>,
        server: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<(Self, u16)> {
        let (host, prefix) = (c_string(host)?, c_string(prefix)?);
        let timeout = milliseconds(timeout);
        // The store closes it.
        let listener = listener.map_or(-1, IntoRawFd::into_raw_fd);
        let mut bound = 0;
        // SAFETY: both strings live until the call returns, and `bound` is a place for a port.
        let handle = make(|out| unsafe {
            let (host, prefix) = (host.as_ptr(), prefix.as_ptr());
            dsr_store_tcp(host, port, server, listener, prefix, timeout, &raw mut bound, out)
        })?;
        Ok((Self(handle), bound))
    }

    /// Sets a key, or replaces its value.
    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = c_string(key)?;
        // SAFETY: the store is alive; key and value live until the call returns, which copies them.
        check(unsafe { dsr_store_set(self.0, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// Sets a key that has no value yet, at one instant for all; the value that it has then.
    pub(crate) fn claim(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let key = c_string(key)?;
        let (mut found, mut size) = (ptr::null(), 0);
        // SAFETY: the store is alive; key and value live until the call returns, the rest are places.
        check(unsafe {
            let (found, size) = (&raw mut found, &raw mut size);
            dsr_store_claim(self.0, key.as_ptr(), value.as_ptr(), value.len(), found, size)
        })?;
        if size == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: the call wrote a pointer to `size` bytes, which are this thread's until its next
        // call; they are copied here.
        Ok(unsafe { slice::from_raw_parts(found, size) }.to_vec())
    }

    /// The value of a key, if it has one now.
    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = c_string(key)?;
        let (mut found, mut value, mut size) = (false, ptr::null(), 0);
        // SAFETY: the store is alive, the key lives until the call returns, the rest are places.
        check(unsafe {
            let (found, value) = (&raw mut found, &raw mut value);
            dsr_store_get(self.0, key.as_ptr(), found, value, &raw mut size)
        })?;
        if !found || size == 0 {
            return Ok(found.then(Vec::new));
        }
        // SAFETY: the call wrote a pointer to `size` bytes, which are this thread's until its next
        // call; they are copied here.
        Ok(Some(unsafe { slice::from_raw_parts(value, size) }.to_vec()))
    }

    /// Says that `rank` is there and waits for the others; returns for each rank whether it came
    /// in time.
    pub(crate) fn join(&self, rank: usize, size: usize, timeout: Duration) -> Result<Vec<bool>> {
        let mut present = vec![false; size];
        let (rank, size) = (int(rank)?, int(size)?);
        // SAFETY: `present` has one flag for each of the `size` ranks.
        check(unsafe {
            dsr_store_join(self.0, rank, size, milliseconds(timeout), present.as_mut_ptr())
        })?;
        Ok(present)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle came from `make` and is freed once. Groups hold their own reference.
        unsafe { dsr_store_free(self.0) }
    }
}

/// The transport of data between the ranks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport<'a> {
    /// Gloo for host memory: on a network interface by name, or else on the one that has this
    /// address, or else on the one of this machine's host name.
    Gloo { interface: Option<&'a str>, address: Option<&'a str> },
    /// NCCL for the CUDA device of this index.
    Nccl { cuda_index: usize },
}

/// A c10d backend whose ranks are connected.
pub(crate) struct Group(Handle);

impl Group {
    /// Connects rank `rank` of `size` with the others. Every rank must call it.
    pub(crate) fn new(
        store: &Store,
        (rank, size): (usize, usize),
        transport: Transport<'_>,
        timeout: Duration,
    ) -> Result<Self> {
        let (cuda_index, interface, address) = match transport {
            Transport::Gloo { interface, address } => (-1, interface, address),
            Transport::Nccl { cuda_index } => (int(cuda_index)?, None, None),
        };
        let (rank, size, timeout) = (int(rank)?, int(size)?, milliseconds(timeout));
        let (interface, address) =
            (c_string(interface.unwrap_or_default())?, c_string(address.unwrap_or_default())?);
        // SAFETY: the store is alive, and the strings live until the call returns.
        make(|out| unsafe {
            let (interface, address) = (interface.as_ptr(), address.as_ptr());
            dsr_group_new(store.0, rank, size, cuda_index, interface, address, timeout, out)
        })
        .map(Self)
    }

    /// Connects rank `rank` of `size`, which are some of this group's, with each other: with keys of
    /// their own in the same store, by the same transport. Each of them must call it.
    pub(crate) fn subgroup(&self, prefix: &str, (rank, size): (usize, usize)) -> Result<Self> {
        let (prefix, rank, size) = (c_string(prefix)?, int(rank)?, int(size)?);
        // SAFETY: the group is alive, and the prefix lives until the call returns.
        make(|out| unsafe { dsr_group_sub(self.0, prefix.as_ptr(), rank, size, out) }).map(Self)
    }

    /// Reduces `tensor` over all ranks, in place.
    pub(crate) fn all_reduce(&self, tensor: &Tensor, op: ReduceOp, mode: Mode) -> Result<Work> {
        // SAFETY: group and tensor are alive; the work keeps its own reference to the tensor.
        work(|out| unsafe {
            dsr_all_reduce(self.0, raw(tensor), op as c_int, mode == Mode::Async, out)
        })
    }

    /// Concatenates the shards of all ranks into `output`, in the order of the ranks.
    pub(crate) fn all_gather(&self, output: &Tensor, shard: &Tensor, mode: Mode) -> Result<Work> {
        // SAFETY: as in `all_reduce`.
        work(|out| unsafe {
            dsr_all_gather(self.0, raw(output), raw(shard), mode == Mode::Async, out)
        })
    }

    /// Reduces `input` over all ranks; `shard` receives this rank's slice of the result.
    pub(crate) fn reduce_scatter(
        &self,
        shard: &Tensor,
        input: &Tensor,
        op: ReduceOp,
        mode: Mode,
    ) -> Result<Work> {
        // SAFETY: as in `all_reduce`.
        work(|out| unsafe {
            let (shard, input) = (raw(shard), raw(input));
            dsr_reduce_scatter(self.0, shard, input, op as c_int, mode == Mode::Async, out)
        })
    }

    /// Copies `tensor` of rank `root` over `tensor` of all others.
    pub(crate) fn broadcast(&self, tensor: &Tensor, root: usize, mode: Mode) -> Result<Work> {
        let root = int(root)?;
        // SAFETY: as in `all_reduce`.
        work(|out| unsafe { dsr_broadcast(self.0, raw(tensor), root, mode == Mode::Async, out) })
    }

    /// Completes when every rank has called it.
    pub(crate) fn barrier(&self, mode: Mode) -> Result<Work> {
        // SAFETY: the group is alive.
        work(|out| unsafe { dsr_barrier(self.0, mode == Mode::Async, out) })
    }
}

impl Group {
    /// Leaves the group as it is for the rest of the process: to free one in which a collective
    /// still runs would wait for that collective.
    pub(crate) fn leak(&mut self) {
        self.0 = ptr::null_mut();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the handle came from `make` and is freed once; works own what they use.
            unsafe { dsr_group_free(self.0) }
        }
    }
}

/// A collective that is under way. It owns references to its tensors.
pub(crate) struct Work(Handle);

impl Work {
    /// Waits for the result, for `time` at most, and tells whether it is there; on CUDA it makes
    /// the current stream wait instead of this thread.
    pub(crate) fn wait(&self, time: Duration) -> Result<bool> {
        let mut done = false;
        // SAFETY: the handle is alive until `self` is dropped, and `done` is a place for a bool.
        check(unsafe { dsr_work_wait(self.0, milliseconds(time), &raw mut done) })?;
        Ok(done)
    }

    /// Whether the transfer is done, well or not.
    pub(crate) fn is_completed(&self) -> Result<bool> {
        let mut completed = false;
        // SAFETY: the handle is alive and `completed` is a place for a bool.
        check(unsafe { dsr_work_is_completed(self.0, &raw mut completed) })?;
        Ok(completed)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: the handle came from `make` and is freed once. A transfer that still runs is
        // kept alive, with its tensors, by the backend that runs it.
        unsafe { dsr_work_free(self.0) }
    }
}

/// Calls a constructor of the bridge and returns the handle that it wrote.
fn make(construct: impl FnOnce(*mut Handle) -> c_int) -> Result<Handle> {
    let mut handle = ptr::null_mut();
    check(construct(&raw mut handle))?;
    Ok(handle)
}

fn work(start: impl FnOnce(*mut Handle) -> c_int) -> Result<Work> {
    make(start).map(Work)
}

fn int(value: usize) -> Result<c_int> {
    c_int::try_from(value)
        .map_err(|_| Error::new(Code::Dist, format!("{value} is too large for a rank or a device")))
}

fn milliseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX)
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text)
        .map_err(|_| Error::new(Code::Dist, format!("{text:?} contains a zero character")))
}
