//! Where gradients arrive when they leave the device: host memory that stays, a place for each unit.

use crate::{
    error::Result,
    tensor::{Copying, Device, Tensor, place_on_host, start_copy},
};

/// The place of each unit, made when its first gradient comes.
pub(super) struct Landing {
    location: Device,
    places: Vec<Option<Tensor>>,
}

impl Landing {
    /// For this many units, whose gradients are taken on `location`.
    pub(super) fn new(location: Device, units: usize) -> Self {
        Self { location, places: (0..units).map(|_| None).collect() }
    }

    /// Starts to bring the gradient of unit `i` there, in the place of the one before it. One that is
    /// there already stays where it is.
    pub(super) fn bring(&mut self, i: usize, grad: Tensor) -> Result<Copying> {
        if grad.device() == self.location {
            return Ok(Copying::done(grad));
        }
        start_copy(self.place(i, &grad)?, &grad)
    }

    fn place(&mut self, i: usize, grad: &Tensor) -> Result<&Tensor> {
        let fits = |place: &Tensor| place.kind() == grad.kind() && place.size() == grad.size();
        let place = match self.places[i].take() {
            Some(place) if fits(&place) => place,
            // The old one goes before the new one comes.
            other => {
                drop(other);
                place_on_host(grad)?
            }
        };
        Ok(self.places[i].insert(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Kind;

    #[test]
    fn a_gradient_that_is_there_stays_and_others_have_one_place_each() {
        let cpu = (Kind::Float, Device::Cpu);
        let mut landing = Landing::new(Device::Cpu, 2);
        let grad = Tensor::ones([3], cpu);
        let there = landing.bring(1, grad.shallow_clone()).unwrap().wait().unwrap();
        assert_eq!(there.data_ptr(), grad.data_ptr());
        assert!(landing.places[1].is_none());
        let mut place = |i, numel, kind| {
            landing.place(i, &Tensor::ones([numel], (kind, Device::Cpu))).unwrap().data_ptr()
        };
        let first = place(0, 3, Kind::Float);
        assert_eq!(place(0, 3, Kind::Float), first);
        assert_ne!(place(1, 3, Kind::Float), first);
        place(0, 5, Kind::BFloat16);
        let now = landing.places[0].as_ref().unwrap();
        assert_eq!((now.kind(), now.numel()), (Kind::BFloat16, 5));
    }
}
