//! Norms: layer norm (Ba et al. 2016) and RMS norm (Zhang & Sennrich 2019), with statistics in float32.
//!
//! libtorch's RMS norm is several operations on the CPU, each of which keeps a tensor. Here it is one,
//! with a gradient of its own: it keeps its input, which is there anyway, and a number for each row.

use crate::{
    bridge::autograd::own_gradient,
    error::Result,
    model::{
        cost::{FLOAT_BYTES, Operation, Tape, Workload},
        layer::Context,
        params::{LayerBuilder, ParamId, Params},
        profile::{ModuleProfile, record},
        unit::Init,
        unit_gradient::ParamSink,
    },
    tensor::{Kind, Tensor, no_grad},
};

/// A norm over the channels.
#[derive(Debug)]
pub(crate) struct Norm {
    /// The last part of its name.
    name: String,
    weight: Option<ParamId>,
    bias: Option<ParamId>,
    width: i64,
    epsilon: f64,
    kind: NormKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NormKind {
    Layer,
    Rms,
    /// RMS norm whose weight is stored less one, as Gemma's.
    RmsPlusOne,
}

impl Norm {
    /// A layer norm with weight and bias.
    pub(crate) fn layer(b: &mut LayerBuilder, name: &str, width: i64, epsilon: f64) -> Self {
        let weight = b.add(&format!("{name}.weight"), &[width], Init::Ones);
        let bias = b.add(&format!("{name}.bias"), &[width], Init::Zeros);
        Self::new(name, (Some(weight), Some(bias)), width, epsilon, NormKind::Layer)
    }

    /// A layer norm without parameters.
    pub(crate) fn bare_layer(name: &str, width: i64, epsilon: f64) -> Self {
        Self::new(name, (None, None), width, epsilon, NormKind::Layer)
    }

    /// An RMS norm with a weight.
    pub(crate) fn rms(b: &mut LayerBuilder, name: &str, width: i64, epsilon: f64) -> Self {
        let weight = b.add(&format!("{name}.weight"), &[width], Init::Ones);
        Self::new(name, (Some(weight), None), width, epsilon, NormKind::Rms)
    }

    /// An RMS norm that multiplies with one more than its weight.
    pub(crate) fn rms_plus_one(b: &mut LayerBuilder, name: &str, width: i64, epsilon: f64) -> Self {
        let weight = b.add(&format!("{name}.weight"), &[width], Init::Zeros);
        Self::new(name, (Some(weight), None), width, epsilon, NormKind::RmsPlusOne)
    }

    fn new(
        name: &str,
        (weight, bias): (Option<ParamId>, Option<ParamId>),
        width: i64,
        epsilon: f64,
        kind: NormKind,
    ) -> Self {
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        Self { name, weight, bias, width, epsilon, kind }
    }

    /// The norm of `x` over its last dimension.
    pub(crate) fn forward(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        record(context.recorder, &self.name, || {
            let tensor = |id: Option<ParamId>| id.map(|id| p.tensor(id));
            let (weight, bias) = (tensor(self.weight), tensor(self.bias));
            let width = [self.width];
            match (self.kind, weight) {
                (NormKind::Rms | NormKind::RmsPlusOne, Some(weight)) => {
                    let plus_one = self.kind == NormKind::RmsPlusOne;
                    let sink = self.weight.and_then(|id| p.sink(id));
                    rms_norm(x, weight, sink, (self.epsilon, plus_one))
                }
                _ => Ok(x.f_layer_norm(&width[..], weight, bias, self.epsilon, true)?),
            }
        })
    }

    /// Adds the cost; the input is kept if nothing before keeps it.
    pub(crate) fn cost(
        &self,
        work: &Workload,
        tape: &mut Tape,
        keeps_input: bool,
    ) -> ModuleProfile {
        self.cost_of_rows(work, tape, work.places(), keeps_input)
    }

    /// The cost for so many rows.
    pub(crate) fn cost_of_rows(
        &self,
        work: &Workload,
        tape: &mut Tape,
        rows: u64,
        keeps_input: bool,
    ) -> ModuleProfile {
        let input = rows * self.width.unsigned_abs() * work.element_bytes;
        let (statistics, transient) = match self.kind {
            NormKind::Layer => (2, 0),
            // The rows at unit size, and their product with the gradient.
            NormKind::Rms | NormKind::RmsPlusOne => (1, 2 * input),
        };
        tape.push(Operation {
            kept: statistics * rows * FLOAT_BYTES + if keeps_input { input } else { 0 },
            transient: transient + if transient > 0 { input } else { 0 },
            gradient: input,
            ..Operation::default()
        });
        let kind = if self.kind == NormKind::Layer { "LayerNorm" } else { "RMSNorm" };
        let params = [self.weight, self.bias].iter().flatten().count() as u64;
        ModuleProfile {
            params: params * self.width.unsigned_abs(),
            flops: 5 * rows * self.width.unsigned_abs(),
            ..ModuleProfile::new(&*self.name, kind)
        }
    }
}

/// `x / sqrt(mean(x^2) + epsilon) * weight`; the second setting adds one to the weight, in float32.
fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    sink: Option<ParamSink>,
    (epsilon, plus_one): (f64, bool),
) -> Result<Tensor> {
    let scale = || -> Result<Tensor> {
        Ok(if plus_one {
            weight.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?
        } else {
            weight.shallow_clone()
        })
    };
    let Some(sink) = sink else {
        // Autograd's own, for whoever wants a graph without a sink.
        let exact = x.f_to_kind(Kind::Float)?;
        let mean = exact.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
        let unit = exact.f_mul(&mean.f_add_scalar(epsilon)?.f_rsqrt()?)?;
        return scaled(unit, &scale()?, x.kind(), plus_one);
    };
    let (y, reciprocal) = no_grad(|| {
        let width = x.size().last().copied().unwrap_or(1) as f64;
        let norm = x.f_norm_scalaropt_dim_dtype(2, &[-1i64][..], true, Kind::Float)?;
        let reciprocal = norm.f_square()?.f_div_scalar(width)?.f_add_scalar(epsilon)?.f_rsqrt()?;
        let unit = x.f_mul(&reciprocal)?;
        scaled(unit, &scale()?, x.kind(), plus_one).map(|y| (y, reciprocal))
    })?;
    let (input, kept) = (x.shallow_clone(), weight.shallow_clone());
    own_gradient(&[x, weight], &y, move |grad| {
        no_grad(|| {
            let scale = match plus_one {
                true => kept.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?,
                false => kept.f_to_kind(Kind::Float)?,
            };
            let dx = rms_backward(grad, &input, &reciprocal, &scale, &sink)?;
            Ok(vec![Some(dx), None])
        })
    })?;
    Ok(y)
}

/// `unit`, float32 or in the format of the model, times the weight: as transformers rounds it.
fn scaled(unit: Tensor, scale: &Tensor, kind: Kind, plus_one: bool) -> Result<Tensor> {
    Ok(match plus_one {
        true => unit.f_mul(scale)?.f_to_kind(kind)?,
        false => unit.f_to_kind(kind)?.f_mul(scale)?,
    })
}

/// Adds the weight's gradient to its sink and returns that of the input, in the input's format.
fn rms_backward(
    grad: &Tensor,
    input: &Tensor,
    reciprocal: &Tensor,
    scale: &Tensor,
    sink: &ParamSink,
) -> Result<Tensor> {
    let width = scale.numel() as i64;
    let grad = grad.f_to_kind(Kind::Float)?;
    let unit = input.f_mul(reciprocal)?;
    let both = grad.f_mul(&unit)?.f_view([-1, width])?;
    sink.with(|gradient, i| gradient.add_rows(i, 0, &both))?;
    let mean = both.f_mv(scale)?.f_div_scalar(width)?.f_view(&reciprocal.size()[..])?;
    drop(both);
    let mut dx = grad.f_mul(scale)?;
    let mut dx = dx.f_addcmul_(&unit, &mean.f_neg()?)?;
    Ok(dx.f_mul_(reciprocal)?.f_to_kind(input.kind())?)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::{
        bridge::autograd,
        model::{
            FlatUnit,
            masks::Masks,
            unit_gradient::{Sink, UnitGradients},
        },
        tensor::Device,
    };

    /// Beside the same norm as autograd sees it. In float32 within rounding, 1e-5; in bfloat16 within
    /// two of its steps, 2^-7 each.
    #[test]
    fn the_gradient_of_rms_norm_equals_autograds() {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
            for plus_one in [false, true] {
                let mut b = LayerBuilder::new("layer");
                let make = if plus_one { Norm::rms_plus_one } else { Norm::rms };
                let norm = make(&mut b, "norm", 8, 1e-3);
                let unit = FlatUnit::zeros(b.into_parts().0, Device::Cpu).unwrap();
                let _ = unit.cast_and_pad(kind, 1).unwrap();
                let cpu = (Kind::Float, Device::Cpu);
                no_grad(|| unit.params()[0].shallow_clone().copy_(&Tensor::randn([8], cpu)));
                let units: Rc<[FlatUnit]> = Rc::new([unit]);
                let x = Tensor::randn([2, 3, 8], cpu).to_kind(kind).set_requires_grad(true);
                let weight = Tensor::randn([2, 3, 8], cpu).to_kind(kind);
                let masks = Masks::default();
                let run = |sink: Option<&Sink>| {
                    let params = Params::new(&units, Some(0), &[], sink);
                    norm.forward(&params, &x, &Context::new(&masks)).unwrap()
                };
                let param = &units[0].params()[0];
                let y = run(None);
                let expected = autograd::grad(&[(&y, &weight)], &[&x, param]).unwrap();
                let sink = Sink::new(&units, Kind::Float);
                let own = run(Some(&sink));
                assert!(own.allclose(&y, tolerance, tolerance, false));
                let step = Rc::new(RefCell::new(UnitGradients::new(&units, Kind::Float)));
                sink.turn_to(&step).unwrap();
                let made = autograd::grad(&[(&own, &weight)], &[&x, param]).unwrap();
                let flat = step.borrow_mut().take(0).unwrap().complete().unwrap();
                let made = [made[0].as_ref().unwrap(), &units[0].views(&flat)[0]];
                for (made, expected) in made.iter().zip(expected) {
                    let (made, expected) =
                        (made.to_kind(Kind::Float), expected.unwrap().to_kind(Kind::Float));
                    let off = ((&made - &expected).norm() / expected.norm()).double_value(&[]);
                    assert!(off < tolerance, "{kind:?} {plus_one} {off}");
                }
            }
        }
    }
}
