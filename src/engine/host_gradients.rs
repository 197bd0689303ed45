//! Host memory for gradients that leave the device: a buffer for each unit.

use crate::{
    error::Result,
    tensor::{Copying, Device, Tensor, place_on_host, start_copy},
};

/// The buffer of each unit, made when its first gradient comes.
pub(super) struct HostGradients {
    /// The device on which the gradient of each unit is taken.
    devices: Vec<Device>,
    buffers: Vec<Option<Tensor>>,
}

impl HostGradients {
    /// For the units whose gradients are taken on these devices.
    pub(super) fn new(devices: Vec<Device>) -> Self {
        let buffers = devices.iter().map(|_| None).collect();
        Self { devices, buffers }
    }

    /// Starts to copy the gradient of unit `i` to its device, over the one before it. A gradient that is
    /// there already stays where it is.
    pub(super) fn receive(&mut self, i: usize, grad: Tensor) -> Result<Copying> {
        if grad.device() == self.devices[i] {
            return Ok(Copying::done(grad));
        }
        start_copy(self.buffer(i, &grad)?, &grad)
    }

    fn buffer(&mut self, i: usize, grad: &Tensor) -> Result<&Tensor> {
        let fits = |buffer: &Tensor| buffer.kind() == grad.kind() && buffer.size() == grad.size();
        let buffer = match self.buffers[i].take() {
            Some(buffer) if fits(&buffer) => buffer,
            // The old one goes before the new one comes.
            other => {
                drop(other);
                place_on_host(grad)?
            }
        };
        Ok(self.buffers[i].insert(buffer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Kind;

    #[test]
    fn a_gradient_that_is_there_stays_and_others_have_one_place_each() {
        let cpu = (Kind::Float, Device::Cpu);
        let mut host_gradients = HostGradients::new(vec![Device::Cpu; 2]);
        let grad = Tensor::ones([3], cpu);
        let there = host_gradients.receive(1, grad.shallow_clone()).unwrap().wait().unwrap();
        assert_eq!(there.data_ptr(), grad.data_ptr());
        assert!(host_gradients.buffers[1].is_none());
        let mut buffer = |i, numel, kind| {
            host_gradients
                .buffer(i, &Tensor::ones([numel], (kind, Device::Cpu)))
                .unwrap()
                .data_ptr()
        };
        let first = buffer(0, 3, Kind::Float);
        assert_eq!(buffer(0, 3, Kind::Float), first);
        assert_ne!(buffer(1, 3, Kind::Float), first);
        buffer(0, 5, Kind::BFloat16);
        let now = host_gradients.buffers[0].as_ref().unwrap();
        assert_eq!((now.kind(), now.numel()), (Kind::BFloat16, 5));
    }
}
