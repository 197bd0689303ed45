//! Activations, and the gate of an MLP: `activation(gate) * up` as one operation (GLU variants, Shazeer
//! 2020), which keeps its inputs alone.

use crate::{
    bridge::autograd::own_gradient,
    config_json::Activation,
    error::Result,
    tensor::{Device, Tensor, no_grad},
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

/// The vectors that kernels take at a time have this many elements, or a divisor of it.
const VECTORS: i64 = 64;

/// A function of each element on parts of `inputs` `[B, T, C]`, which have these `lengths` along
/// dimension `dim`, each part alone where its elements are no whole vectors: kernels compute the last
/// elements of a tensor by other instructions, so that a part would depend on those behind it.
pub(super) fn each_alone(
    inputs: &[&Tensor],
    dim: i64,
    lengths: &[i64],
    work: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Tensor> {
    let width = inputs[0].size().last().copied().unwrap_or(0);
    let whole: Vec<_> = inputs.iter().map(|x| x.shallow_clone()).collect();
    if width % VECTORS == 0 || inputs[0].device() != Device::Cpu {
        return work(&whole);
    }
    let mut from = 0;
    let alone = |&length: &i64| {
        let part = |x: &Tensor| Ok(x.f_narrow(dim, from, length)?);
        let parts = whole.iter().map(part).collect::<Result<Vec<_>>>()?;
        from += length;
        work(&parts)
    };
    let made: Vec<Tensor> = lengths.iter().map(alone).collect::<Result<_>>()?;
    Ok(Tensor::f_cat(&made, dim)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bridge::autograd, tensor::Kind};

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
