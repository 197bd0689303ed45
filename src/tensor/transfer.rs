//! Tensors on their way between a GPU and the host, beside the computation.
//!
//! A copy goes over a lane of its direction (`bridge/stream.rs`). It begins when the device has done
//! its earlier work, and later work goes on beside it. A user of the result waits for it first
//! ([`Copying::wait`]). Where both ends are one device, there is nothing to
//! wait for.

use super::{Device, Tensor, bytes_of, no_grad};
use crate::{
    bridge::stream::{self, CopyDirection, Moment, on_lane},
    error::Result,
};

/// Bytes that are rounded on the host at once while those before them travel.
pub const STAGE_BYTES: u64 = 16 << 20;

/// A copy that goes on.
#[derive(Debug)]
#[must_use = "what is copied may be used only after `wait`"]
pub struct Copying {
    tensor: Tensor,
    done: Moment,
}

impl Copying {
    /// A tensor that is there.
    pub fn done(tensor: Tensor) -> Self {
        Self { tensor, done: Moment::NOW }
    }

    /// A tensor that is there at a moment of a lane.
    pub(crate) fn until(tensor: Tensor, done: Moment) -> Self {
        Self { tensor, done }
    }

    /// The tensor, to be used at once. For one on a GPU the host does not wait, but what the GPU is
    /// given from here on.
    pub fn wait(mut self) -> Result<Tensor> {
        let done = std::mem::replace(&mut self.done, Moment::NOW);
        if is_on_host(&self.tensor) {
            done.wait()?
        } else {
            done.follow()?
        }
        Ok(self.tensor.shallow_clone())
    }

    /// The tensor once more, to `device`. The host waits for neither way.
    pub fn send_on(self, device: Device) -> Result<Self> {
        if self.tensor.device() == device {
            return Ok(self);
        }
        if !is_on_host(&self.tensor) {
            return start_move(&self.wait()?, device);
        }
        let into = Tensor::f_empty(self.tensor.size(), (self.tensor.kind(), device))?;
        let ((), done) = on_lane(device, CopyDirection::ToDevice, || {
            self.done.follow()?;
            no_grad(|| stream::copy(&into, &self.tensor))
        })?;
        Ok(Self::until(into, done))
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        // Memory of a GPU is given to others in the order of its computation, which must then be
        // behind the copy. Host memory is kept by whoever made it until its copies are done.
        if !is_on_host(&self.tensor)
            && let Err(e) = self.done.follow()
        {
            tracing::error!("a copy was not waited for: {e}");
        }
    }
}

fn is_on_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu
}

/// Starts to copy `x` to `device`; `x` itself where it is there already. `x` may be dropped at once.
/// On the host the copy is in pinned memory that libtorch lends.
pub fn start_move(x: &Tensor, device: Device) -> Result<Copying> {
    match (x.device(), device) {
        (from, to) if from == to => Ok(Copying::done(x.shallow_clone())),
        (Device::Cuda(_), Device::Cpu) => start_copy(&stream::host_like(x, true)?, x),
        (Device::Cpu, Device::Cuda(_)) => {
            start_copy(&Tensor::f_empty(x.size(), (x.kind(), device))?, x)
        }
        _ => Ok(Copying::done(no_grad(|| x.f_to_device(device))?)),
    }
}

/// Starts to copy `from` into `into`, rounded to its format on the way. A `from` that is in pinned
/// memory must not be changed before the copy is done.
pub fn start_copy(into: &Tensor, from: &Tensor) -> Result<Copying> {
    let done = no_grad(|| match (from.device(), into.device()) {
        (device @ Device::Cuda(_), Device::Cpu) => {
            let from = from.f_to_kind(into.kind())?;
            let lane = || {
                stream::record_use(&from)?;
                stream::copy(into, &from)
            };
            Ok(on_lane(device, CopyDirection::ToHost, lane)?.1)
        }
        (Device::Cpu, device @ Device::Cuda(_)) => {
            let as_it_is = from.kind() == into.kind() && stream::is_pinned(from)?;
            let lane = || if as_it_is { stream::copy(into, from) } else { in_stages(into, from) };
            Ok(on_lane(device, CopyDirection::ToDevice, lane)?.1)
        }
        _ => {
            into.shallow_clone().f_copy_(from)?;
            Ok::<_, crate::error::Error>(Moment::NOW)
        }
    })?;
    Ok(Copying::until(into.shallow_clone(), done))
}

/// Copies from the host, rounding one stage in pinned memory while the one before it travels.
fn in_stages(into: &Tensor, from: &Tensor) -> Result<()> {
    for (into, from) in stages(into, from, STAGE_BYTES)? {
        let mut stage = stream::host_like(&into, !is_on_host(&into))?;
        stage.f_copy_(&from)?;
        stream::copy(&into, &stage)?;
    }
    Ok(())
}

/// The parts of both that go together, of at most so many bytes of `into`; tensors that are not flat
/// go whole.
fn stages(into: &Tensor, from: &Tensor, bytes: u64) -> Result<Vec<(Tensor, Tensor)>> {
    if into.dim() != 1 || from.size() != into.size() {
        return Ok(vec![(into.shallow_clone(), from.shallow_clone())]);
    }
    let (all, step) = (into.numel(), (bytes / bytes_of(into.kind(), 1)) as usize);
    let part = |start: usize| {
        let (start, length) = (start as i64, step.min(all - start) as i64);
        Ok((into.f_narrow(0, start, length)?, from.f_narrow(0, start, length)?))
    };
    (0..all).step_by(step).map(part).collect()
}

/// `x` on `device`, to be used at once, as [`Copying::wait`] gives it.
pub fn moved(x: &Tensor, device: Device) -> Result<Tensor> {
    start_move(x, device)?.wait()
}

/// `values` as one tensor of this shape on `device`. The host does not wait for a GPU, which copies
/// them from pinned memory.
pub fn to_device(values: &[i64], shape: &[i64], device: Device) -> Result<Tensor> {
    moved(&Tensor::f_from_slice(values)?.f_view(shape)?, device)
}

/// Writes `from` into `into`, rounded to its format, as [`start_copy`] does.
pub fn write_over(into: &Tensor, from: &Tensor) -> Result<()> {
    start_copy(into, from)?.wait().map(drop)
}

/// `x` where it will stay on `device`. For a tensor of a GPU that is kept on the host this is pinned
/// memory of exactly its size.
pub fn settled(x: &Tensor, device: Device) -> Result<Tensor> {
    if x.device() == device {
        return Ok(x.shallow_clone());
    }
    if device != Device::Cpu {
        return moved(x, device);
    }
    let place = place_on_host(x)?;
    write_over(&place, x)?;
    Ok(place)
}

/// Flat memory on the host that has room for `x` and its format; pinned, where `x` is on a GPU.
pub fn place_on_host(x: &Tensor) -> Result<Tensor> {
    let bytes = bytes_of(x.kind(), x.numel() as i64);
    let pages = stream::pages(bytes as i64, !is_on_host(x))?;
    Ok(pages.f_view_dtype(x.kind())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Kind, cuda_is_available};

    fn numbers(n: i64, device: Device) -> Tensor {
        Tensor::arange(n, (Kind::Float, device))
    }

    /// On one device there is nothing to copy, and nothing to wait for.
    #[test]
    fn what_is_there_is_moved_without_a_copy() {
        let x = numbers(10, Device::Cpu);
        let there = start_move(&x, Device::Cpu).unwrap().send_on(Device::Cpu).unwrap();
        assert_eq!(there.wait().unwrap().data_ptr(), x.data_ptr());
        assert_eq!(settled(&x, Device::Cpu).unwrap().data_ptr(), x.data_ptr());
    }

    #[test]
    fn a_copy_is_rounded_on_its_way() {
        let x = numbers(5, Device::Cpu) + 2f64.powi(-10);
        let into = Tensor::zeros([5], (Kind::BFloat16, Device::Cpu));
        write_over(&into, &x).unwrap();
        assert_eq!(into, x.to_kind(Kind::BFloat16));
        let place = place_on_host(&into).unwrap();
        assert_eq!((place.kind(), place.numel()), (Kind::BFloat16, 5));
    }

    #[test]
    fn stages_cover_a_flat_tensor_and_leave_others_whole() {
        let (x, into) = (numbers(10, Device::Cpu), Tensor::zeros([10], (Kind::Half, Device::Cpu)));
        let lengths = |bytes| -> Vec<usize> {
            stages(&into, &x, bytes).unwrap().iter().map(|(part, _)| part.numel()).collect()
        };
        assert_eq!((lengths(8), lengths(20), lengths(100)), (vec![4, 4, 2], vec![10], vec![10]));
        in_stages(&into, &x).unwrap();
        assert_eq!(into, x.to_kind(Kind::Half));
        let square = [&into, &x].map(|x| x.view([2, 5]));
        assert_eq!(stages(&square[0], &square[1], 8).unwrap().len(), 1);
    }

    /// There and back while the GPU computes, with every source dropped at once; what is read is what
    /// was written, though nobody waits for the whole device.
    #[test]
    fn copies_of_a_gpu_arrive_whole() {
        if !cuda_is_available() {
            return println!("skipped: libtorch sees no CUDA device here");
        }
        let gpu = Device::Cuda(0);
        let busy = Tensor::randn([2048, 2048], (Kind::Float, gpu));
        for round in 0..20 {
            let n = (STAGE_BYTES / 2) as i64 + round;
            let x = busy.matmul(&busy).sum(Kind::Float) * 0.0 + numbers(n, gpu) + round;
            let away = start_move(&x, Device::Cpu).unwrap();
            drop(x);
            let noise = Tensor::randn([n], (Kind::Float, gpu));
            let back = away.send_on(gpu).unwrap().wait().unwrap();
            drop(noise);
            let expected = numbers(n, Device::Cpu) + round;
            let kept = settled(&back, Device::Cpu).unwrap();
            assert!(stream::is_pinned(&kept).unwrap() && kept.equal(&expected), "{round}");
            let into = Tensor::zeros([n], (Kind::BFloat16, gpu));
            write_over(&into, &kept).unwrap();
            let rounded = moved(&into, Device::Cpu).unwrap();
            assert!(rounded.equal(&expected.to_kind(Kind::BFloat16)), "{round}");
        }
    }
}
