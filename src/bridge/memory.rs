//! Bytes of tensors by kind, as libtorch's allocators count them.
//!
//! A [`Ledger`] is of one device. While it is open on a thread, what that thread allocates there
//! (and what autograd does for it) is put on it under a [`Kind`]; a block is taken off when it is
//! freed, whatever is open then and whichever thread frees it. This is the exact size of storages,
//! without what an allocator adds to them or keeps beside them.

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    ptr::null_mut,
};

use tch::Device;

use super::check;
use crate::error::{Code, Result};

unsafe extern "C" {
    fn dsr_ledger_new(device_index: c_int, ledger: *mut *mut c_void) -> c_int;
    fn dsr_ledger_delete(ledger: *mut c_void);
    fn dsr_ledger_open(ledger: *mut c_void, kind: c_int) -> c_int;
    fn dsr_ledger_close();
    fn dsr_ledger_read(ledger: *mut c_void, now: *mut i64, peak: *mut i64);
}

/// The use of bytes; native/memory.cpp knows how many kinds there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Kind {
    Parameters,
    Gradients,
    OptimizerState,
    Activations,
    /// Whatever is none of the others.
    Buffers,
}

const KINDS: usize = 5;

/// Bytes by [`Kind`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts([i64; KINDS]);

impl Counts {
    pub(crate) fn of(self, kind: Kind) -> u64 {
        u64::try_from(self.0[kind as usize]).unwrap_or(0)
    }
}

/// The bytes that one owner has on one device.
#[derive(Debug)]
pub(crate) struct Ledger(*mut c_void);

impl Ledger {
    /// An empty ledger for `device`, the CPU or a CUDA device.
    pub(crate) fn new(device: Device) -> Result<Self> {
        let index = match device {
            Device::Cpu => -1,
            Device::Cuda(index) => index as c_int,
            other => bail!(Code::Internal, "the memory of {other:?} is not counted"),
        };
        let mut ledger = null_mut();
        // SAFETY: the pointer is to a place for the result.
        check(unsafe { dsr_ledger_new(index, &raw mut ledger) })?;
        Ok(Self(ledger))
    }

    /// Puts what this thread allocates on this ledger, as `kind`, until the result is dropped.
    pub(crate) fn open(&self, kind: Kind) -> Result<Open> {
        open(self.0, kind)
    }

    /// The bytes now, and at the moment when their sum was highest.
    pub(crate) fn counts(&self) -> (Counts, Counts) {
        let (mut now, mut peak) = (Counts::default(), Counts::default());
        // SAFETY: the ledger is alive, and both arrays have as many entries as there are kinds.
        unsafe { dsr_ledger_read(self.0, now.0.as_mut_ptr(), peak.0.as_mut_ptr()) };
        (now, peak)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // SAFETY: the pointer came from dsr_ledger_new and is used no more; the C++ side keeps what
        // it still needs.
        unsafe { dsr_ledger_delete(self.0) };
    }
}

/// Counts what this thread allocates as `kind` on the ledger that is open, if there is one.
pub(crate) fn count_as(kind: Kind) -> Result<Open> {
    open(null_mut(), kind)
}

fn open(ledger: *mut c_void, kind: Kind) -> Result<Open> {
    // SAFETY: the ledger is null or alive; the C++ side keeps its own hold on it.
    check(unsafe { dsr_ledger_open(ledger, kind as c_int) })?;
    Ok(Open(PhantomData))
}

/// Counting on this thread, until it is dropped.
#[must_use = "counting ends where this is dropped"]
pub(crate) struct Open(PhantomData<*const ()>);

impl Drop for Open {
    fn drop(&mut self) {
        // SAFETY: closes what this thread opened; this type does not leave the thread.
        unsafe { dsr_ledger_close() };
    }
}

#[cfg(test)]
mod tests {
    use std::{ptr::without_provenance_mut, thread};

    use super::*;
    use tch::{Kind as Dtype, Tensor};

    unsafe extern "C" {
        fn dsr_ledger_report(ptr: *mut c_void, bytes: i64) -> c_int;
    }

    /// Stands in for an allocator: a block is handed out, or with negative bytes taken back.
    fn report(address: usize, bytes: i64) {
        // SAFETY: the address is compared with others and never read.
        check(unsafe { dsr_ledger_report(without_provenance_mut(address), bytes) }).unwrap();
    }

    fn zeros(n: i64) -> Tensor {
        Tensor::zeros([n], (Dtype::Float, Device::Cpu))
    }

    fn now(ledger: &Ledger) -> [u64; 2] {
        let counts = ledger.counts().0;
        [counts.of(Kind::Gradients), counts.of(Kind::Buffers)]
    }

    #[test]
    fn blocks_are_counted_by_kind_until_they_are_freed() {
        let ledger = Ledger::new(Device::Cpu).unwrap();
        let before = zeros(1000);
        let open = ledger.open(Kind::Buffers).unwrap();
        let a = zeros(1000);
        let inner = count_as(Kind::Gradients).unwrap();
        let b = zeros(500);
        // A view is no allocation, and a block from before is not counted when it goes.
        let view = b.narrow(0, 0, 10);
        drop(before);
        drop(inner);
        assert_eq!(now(&ledger), [2000, 4000]);
        drop(a);
        drop(open);
        let outside = zeros(4000);
        assert_eq!(now(&ledger), [2000, 0]);
        drop((b, view, outside));
        assert_eq!(now(&ledger), [0, 0]);
        let peak = ledger.counts().1;
        assert_eq!((peak.of(Kind::Gradients), peak.of(Kind::Buffers)), (2000, 4000));
    }

    #[test]
    fn ledgers_are_apart_and_end_before_their_blocks() {
        let (one, two) = (Ledger::new(Device::Cpu).unwrap(), Ledger::new(Device::Cpu).unwrap());
        let block = {
            let _open = one.open(Kind::Buffers).unwrap();
            zeros(10)
        };
        assert_eq!((now(&one), now(&two)), ([0, 40], [0, 0]));
        drop(one);
        drop(block);
        assert_eq!(now(&two), [0, 0]);
    }

    /// Nobody said that the first block was freed, but there cannot be two at one address.
    #[test]
    fn an_address_that_is_handed_out_again_replaces_its_block() {
        let (one, two) = (Ledger::new(Device::Cpu).unwrap(), Ledger::new(Device::Cpu).unwrap());
        let open = one.open(Kind::Buffers).unwrap();
        report(0x10, 300);
        report(0x20, 1);
        let inner = two.open(Kind::Gradients).unwrap();
        report(0x10, 200);
        assert_eq!((now(&one), now(&two)), ([0, 1], [200, 0]));
        drop(inner);
        drop(open);
        // Also by a block that is on no ledger.
        report(0x10, 50);
        assert_eq!((now(&one), now(&two)), ([0, 1], [0, 0]));
        report(0x10, -50);
        report(0x20, -1);
        assert_eq!((now(&one), now(&two)), ([0, 0], [0, 0]));
        assert_eq!(one.counts().1.of(Kind::Buffers), 301);
    }

    #[test]
    fn a_block_that_another_thread_frees_comes_off() {
        let ledger = Ledger::new(Device::Cpu).unwrap();
        let open = ledger.open(Kind::Buffers).unwrap();
        let block = zeros(1000);
        let elsewhere = move || drop((block, zeros(10)));
        thread::spawn(elsewhere).join().unwrap();
        assert_eq!(now(&ledger), [0, 0]);
        assert_eq!(ledger.counts().1.of(Kind::Buffers), 4000, "another thread has no page open");
        drop(open);
    }

    #[test]
    fn without_a_ledger_nothing_is_counted() {
        let _open = count_as(Kind::Buffers).unwrap();
        drop(zeros(10));
    }

    /// Autograd frees and allocates in the backward pass for the thread that called it.
    #[test]
    fn the_backward_pass_is_counted() {
        let ledger = Ledger::new(Device::Cpu).unwrap();
        let _open = ledger.open(Kind::Buffers).unwrap();
        let x = zeros(1000).set_requires_grad(true);
        let y = (&x * &x).sum(Dtype::Float);
        y.backward();
        drop(y);
        // x and its gradient.
        assert_eq!(now(&ledger), [0, 8000]);
    }
}
