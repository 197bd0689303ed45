//! Activations, and the gate of an MLP: `activation(gate) * up` as one operation (GLU variants, Shazeer
//! 2020), which keeps its inputs alone.

use super::Activation;
use crate::{
    bridge::autograd::own_gradient,
    error::Result,
    tensor::{Tensor, no_grad},
};

impl Activation {
    /// The activation of each element.
    pub(crate) fn of(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.approximation() {
            Some(approximate) => x.f_gelu(approximate)?,
            None if self == Self::Relu => x.f_relu()?,
            None => x.f_silu()?,
        })
    }

    /// The gradient of the input `x` for that of the output.
    fn backward(self, grad: &Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(match self.approximation() {
            Some(approximate) => x.f_gelu_backward(grad, approximate)?,
            None if self == Self::Relu => x.f_threshold_backward(grad, 0)?,
            None => x.f_silu_backward(grad)?,
        })
    }

    /// How libtorch's kernel computes a GELU; `None` for other activations.
    fn approximation(self) -> Option<&'static str> {
        match self {
            Self::GeluNew | Self::GeluPytorchTanh => Some("tanh"),
            Self::Gelu => Some("none"),
            Self::Relu | Self::Silu => None,
        }
    }
}

/// `activation(gate) * up`.
pub(super) fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let product = || -> Result<Tensor> { Ok(activation.of(gate)?.f_mul_(up)?) };
    if !gate.requires_grad() {
        return product();
    }
    let y = no_grad(product)?;
    let (kept_gate, kept_up) = (gate.shallow_clone(), up.shallow_clone());
    own_gradient(&[gate, up], &y, move |grad| {
        no_grad(|| {
            let of_gate = activation.backward(&grad.f_mul(&kept_up)?, &kept_gate)?;
            let of_up = activation.of(&kept_gate)?.f_mul_(grad)?;
            Ok(vec![Some(of_gate), Some(of_up)])
        })
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::autograd,
        tensor::{Device, Kind},
    };

    /// Beside autograd's, in float32: 1e-6.
    #[test]
    fn the_gradients_equal_autograds() {
        let random = || Tensor::randn([4, 5], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (gate, up, weight) = (random(), random(), random().detach());
        for (_, activation) in Activation::NAMES {
            let expected = activation.of(&gate).unwrap() * &up;
            let y = gated(activation, &gate, &up).unwrap();
            assert!(y.allclose(&expected, 1e-6, 1e-6, false));
            let of = |y: &Tensor| autograd::grad(&[(y, &weight)], &[&gate, &up]).unwrap();
            for (made, expected) in of(&y).into_iter().zip(of(&expected)) {
                assert!(made.unwrap().allclose(&expected.unwrap(), 1e-6, 1e-6, false));
            }
        }
    }
}
