//! Lanes: streams of a GPU on which copies go on beside the computation, one for each direction.
//!
//! A [`Moment`] is a point of a lane, which others wait for. On the CPU, which has no streams, all of
//! this does nothing: the work is done when its function returns.

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    ptr::null_mut,
};

use tch::{Device, Tensor};

use super::{RawTensor, check, made, raw};
use crate::error::Result;

unsafe extern "C" {
    fn dsr_lane_enter(device_index: c_int, way: c_int, outer: *mut *mut c_void) -> c_int;
    fn dsr_lane_leave(outer: *mut c_void, moment: *mut *mut c_void) -> c_int;
    fn dsr_moment_follow(moment: *mut c_void) -> c_int;
    fn dsr_moment_wait(moment: *mut c_void) -> c_int;
    fn dsr_moment_delete(moment: *mut c_void);
    fn dsr_record_use(tensor: RawTensor) -> c_int;
    fn dsr_copy(into: RawTensor, from: RawTensor) -> c_int;
    fn dsr_host_like(like: RawTensor, is_pinned: bool, tensor: *mut RawTensor) -> c_int;
    fn dsr_is_pinned(tensor: RawTensor, is_pinned: *mut bool) -> c_int;
    fn dsr_pages_new(bytes: i64, is_pinned: bool, tensor: *mut RawTensor) -> c_int;
}

/// The direction of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum CopyDirection {
    ToHost,
    ToDevice,
}

/// Does `work` on a lane of `device`, after what this thread gave the device before; gives the moment
/// when the device has done it.
pub(crate) fn on_lane<R>(
    device: Device,
    way: CopyDirection,
    work: impl FnOnce() -> Result<R>,
) -> Result<(R, Moment)> {
    let index = match device {
        Device::Cuda(index) => index as c_int,
        _ => -1,
    };
    let mut outer = null_mut();
    // SAFETY: the pointer is to a place for the result.
    check(unsafe { dsr_lane_enter(index, way as c_int, &raw mut outer) })?;
    let entered = Entered(outer, PhantomData);
    let result = work()?;
    Ok((result, entered.leave()?))
}

/// On a lane, until it is dropped; null on the CPU.
struct Entered(*mut c_void, PhantomData<*const ()>);

impl Entered {
    fn leave(mut self) -> Result<Moment> {
        let mut moment = Moment::NOW;
        let outer = std::mem::replace(&mut self.0, null_mut());
        // SAFETY: the pointer is of dsr_lane_enter on this thread and used up by this; the other is to
        // a place for the result.
        check(unsafe { dsr_lane_leave(outer, &raw mut moment.0) })?;
        Ok(moment)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // SAFETY: as above; null is fine, and no moment is asked for.
        let status = unsafe { dsr_lane_leave(self.0, null_mut()) };
        if let Err(e) = check(status) {
            tracing::error!("a stream was not left: {e}");
        }
    }
}

/// A moment of a lane. Of the thread that made it: events of libtorch are not made to be shared.
#[derive(Debug)]
pub(crate) struct Moment(*mut c_void);

impl Moment {
    /// A moment that has been reached.
    pub(crate) const NOW: Self = Self(null_mut());

    /// Puts the moment before all that this thread gives the device from now on; the host does not
    /// wait.
    pub(crate) fn follow(&self) -> Result<()> {
        // SAFETY: the pointer is null or of a moment that is alive.
        check(unsafe { dsr_moment_follow(self.0) })
    }

    /// The host waits for it.
    pub(crate) fn wait(&self) -> Result<()> {
        // SAFETY: the pointer is null or of a moment that is alive.
        check(unsafe { dsr_moment_wait(self.0) })
    }
}

impl Drop for Moment {
    fn drop(&mut self) {
        // SAFETY: the pointer is null or of a moment that nobody uses any more.
        unsafe { dsr_moment_delete(self.0) };
    }
}

/// Keeps the memory of `tensor` from being handed out again before the device has done what this
/// thread gives it now: on a lane, of a tensor that was made elsewhere.
pub(crate) fn record_use(tensor: &Tensor) -> Result<()> {
    // SAFETY: the pointer is to a live tensor.
    check(unsafe { dsr_record_use(raw(tensor)) })
}

/// Copies `from` into `into`; between a GPU and pinned memory the host does not wait.
pub(crate) fn copy(into: &Tensor, from: &Tensor) -> Result<()> {
    // SAFETY: both pointers are to live tensors.
    check(unsafe { dsr_copy(raw(into), raw(from)) })
}

/// A tensor on the CPU like this one, with any content; `is_pinned` needs a GPU.
pub(crate) fn host_like(tensor: &Tensor, is_pinned: bool) -> Result<Tensor> {
    // SAFETY: the tensor is alive for the whole call, and the other pointer is to a place.
    made(|place| unsafe { dsr_host_like(raw(tensor), is_pinned, place) })
}

/// Bytes of memory of their own on the CPU, zeros; `is_pinned` needs a GPU.
pub(crate) fn pages(bytes: i64, is_pinned: bool) -> Result<Tensor> {
    // SAFETY: the pointer is to a place for the result.
    made(|place| unsafe { dsr_pages_new(bytes, is_pinned, place) })
}

/// Whether a tensor on the CPU is in pinned memory.
pub(crate) fn is_pinned(tensor: &Tensor) -> Result<bool> {
    let mut is_pinned = false;
    // SAFETY: the pointers are to a live tensor and to a place for the result.
    check(unsafe { dsr_is_pinned(raw(tensor), &raw mut is_pinned) })?;
    Ok(is_pinned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use tch::Kind;

    #[test]
    fn on_the_cpu_work_is_done_when_it_returns() {
        let from = Tensor::from_slice(&[1.0f32, 2.0]);
        let into = host_like(&from, false).unwrap();
        for way in [CopyDirection::ToHost, CopyDirection::ToDevice] {
            let work = || {
                record_use(&from)?;
                copy(&into, &from)
            };
            let ((), moment) = on_lane(Device::Cpu, way, work).unwrap();
            assert_eq!(into, from);
            moment.follow().and_then(|()| moment.wait()).unwrap();
        }
        let failed =
            on_lane(Device::Cpu, CopyDirection::ToHost, || -> Result<()> { bail!(Code::Io, "no") });
        assert_eq!(failed.unwrap_err().code(), Code::Io);
        assert!(!is_pinned(&from).unwrap());
    }

    #[test]
    fn pages_are_zeros_as_long_as_a_view_of_them_lives() {
        let pages = pages(10_000, false).unwrap();
        assert_eq!(pages.sum(Kind::Int64).int64_value(&[]), 0);
        let view = pages.narrow(0, 9_000, 1_000).view_dtype(Kind::Float);
        drop(pages);
        assert_eq!(view.shallow_clone().fill_(2.0).sum(Kind::Double).double_value(&[]), 500.0);
        assert_eq!(super::pages(0, false).unwrap().numel(), 0);
    }
}
