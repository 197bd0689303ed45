//! The linear layer of GPT-2, transformers' `Conv1D`: its weight is stored `[in, out]`.
//!
//! In a training its gradients go straight into the flat gradient of the unit: the product adds that
//! of the weight there itself, in 16 bits in float32 where the device can. Autograd would make a
//! tensor of the weight's size, in the weight's format, only to have it added to the one that exists.

use super::unit_gradient::Sink;
use crate::{
    bridge::autograd::own_gradient,
    error::Result,
    tensor::{Tensor, no_grad},
};

/// The parameters of a linear layer: weight `[in, out]` and bias `[out]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conv1d<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) bias: &'a Tensor,
    /// The number of the weight among the parameters of its unit; the bias is the next.
    pub(super) index: usize,
}

impl Conv1d<'_> {
    /// `x @ weight + bias` for `x` `[B, T, in]`. With a `sink` a backward pass adds the gradients of
    /// the parameters there, and autograd gets none of them.
    ///
    /// # Errors
    /// libtorch refuses.
    pub(super) fn forward(self, x: &Tensor, sink: Option<&Sink>) -> Result<Tensor> {
        let Self { weight, bias, index } = self;
        let &[b, t, c] = x.size().as_slice() else { unreachable!("hidden states are [B, T, C]") };
        let x = x.f_reshape([b * t, c])?;
        let y = match sink {
            None => bias.f_addmm(&x, weight)?,
            Some(sink) => {
                let y = no_grad(|| bias.f_addmm(&x, weight))?;
                let (sink, input, kept) = (sink.clone(), x.shallow_clone(), weight.shallow_clone());
                own_gradient(&[&x, weight, bias], &y, move |grad| {
                    sink.with(|gradient| {
                        gradient.add_product(index, (&input.f_transpose(0, 1)?, grad), 1.0)?;
                        gradient.add_rows(index + 1, grad)
                    })?;
                    Ok(vec![Some(grad.f_mm(&kept.f_transpose(0, 1)?)?), None, None])
                })?;
                y
            }
        };
        Ok(y.f_view([b, t, -1])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::autograd::grad,
        model::{FlatUnit, Init, ParamSpec, unit_gradient::UnitGradient},
        tensor::{Device, Kind},
    };

    /// Beside autograd's gradients; sums of six products in float32, hence 1e-6.
    #[test]
    fn the_gradients_go_where_autograds_would() {
        let spec = |name: &str, shape: &[i64]| ParamSpec::new(name, shape, Init::Zeros);
        let specs = vec![spec("other", &[3]), spec("weight", &[4, 5]), spec("bias", &[5])];
        let unit = FlatUnit::zeros(specs, Device::Cpu).unwrap();
        let cpu = (Kind::Float, Device::Cpu);
        no_grad(|| unit.params()[1].shallow_clone().copy_(&Tensor::randn([4, 5], cpu)));
        let layer = Conv1d { weight: &unit.params()[1], bias: &unit.params()[2], index: 1 };
        let x = Tensor::randn([2, 3, 4], cpu).set_requires_grad(true);
        let weights = Tensor::randn([2, 3, 5], cpu);
        let inputs = [&x, layer.weight, layer.bias];
        let expected = grad(&layer.forward(&x, None).unwrap(), &weights, &inputs).unwrap();
        let sink = Sink::default();
        let y = layer.forward(&x, Some(&sink)).unwrap();
        sink.lend(UnitGradient::new(&unit, Kind::Float).unwrap());
        let made = grad(&y, &weights, &inputs).unwrap();
        assert!(made[1].is_none() && made[2].is_none());
        let flat = sink.take_back().unwrap().complete().unwrap();
        let views = unit.views(&flat);
        for (made, expected) in
            [made[0].as_ref().unwrap(), &views[1], &views[2]].iter().zip(expected)
        {
            assert!(made.allclose(&expected.unwrap(), 1e-6, 1e-6, false));
        }
    }
}
