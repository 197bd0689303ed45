//! RMS norm with a gradient of its own: it keeps its input, which is there anyway, and a number for each
//! row. libtorch has kernels for it on a GPU; on the CPU its norm is several operations, each of which
//! keeps a tensor.

use crate::{
    bridge::{autograd::own_gradient, ops::rms_norm_backward},
    error::Result,
    model::{params::Backward, unit_gradient::ParamSink},
    tensor::{Device, Kind, Tensor, no_grad},
};

/// `x / sqrt(mean(x^2) + epsilon) * weight`; the second setting adds one to the weight, in float32.
pub(super) fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    backward: Backward,
    (epsilon, plus_one): (f64, bool),
) -> Result<Tensor> {
    let exact = exact_kind(x.kind());
    let scale = || -> Result<Tensor> {
        Ok(if plus_one {
            weight.f_to_kind(exact)?.f_add_scalar(1.0)?
        } else {
            weight.shallow_clone()
        })
    };
    let Backward::ByHand(sink) = backward else {
        let x_exact = x.f_to_kind(exact)?;
        let mean = x_exact.f_square()?.f_mean_dim(&[-1i64][..], true, exact)?;
        let unit = x_exact.f_mul(&mean.f_add_scalar(epsilon)?.f_rsqrt()?)?;
        return scaled(unit, &scale()?, x.kind(), plus_one);
    };
    if x.device() != Device::Cpu && !plus_one {
        return fused(x, weight, sink, epsilon);
    }
    let (y, reciprocal) = no_grad(|| {
        let width = x.size().last().copied().unwrap_or(1) as f64;
        let norm = x.f_norm_scalaropt_dim_dtype(2, &[-1i64][..], true, exact)?;
        let reciprocal = norm.f_square()?.f_div_scalar(width)?.f_add_scalar(epsilon)?.f_rsqrt()?;
        let unit = x.f_mul(&reciprocal)?;
        scaled(unit, &scale()?, x.kind(), plus_one).map(|y| (y, reciprocal))
    })?;
    let (input, kept) = (x.shallow_clone(), weight.shallow_clone());
    own_gradient(&[x, weight], &y, move |grad| {
        no_grad(|| {
            let scale = match plus_one {
                true => kept.f_to_kind(exact)?.f_add_scalar(1.0)?,
                false => kept.f_to_kind(exact)?,
            };
            let dx = rms_backward(grad, &input, &reciprocal, &scale, sink.as_ref())?;
            Ok(vec![Some(dx), None])
        })
    })?;
    Ok(y)
}

/// The format in which rows of this one are normalized: float32, or float64 for its own.
fn exact_kind(kind: Kind) -> Kind {
    if kind == Kind::Double { Kind::Double } else { Kind::Float }
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
    sink: Option<&ParamSink>,
) -> Result<Tensor> {
    let width = scale.numel() as i64;
    let grad = grad.f_to_kind(scale.kind())?;
    let unit = input.f_mul(reciprocal)?;
    let both = grad.f_mul(&unit)?.f_view([-1, width])?;
    if let Some(sink) = sink {
        sink.with(|gradient, i| gradient.add_rows(i, 0, &both))?;
    }
    let mean = both.f_mv(scale)?.f_div_scalar(width)?.f_view(&reciprocal.size()[..])?;
    drop(both);
    let mut dx = grad.f_mul(scale)?;
    let mut dx = dx.f_addcmul_(&unit, &mean.f_neg()?)?;
    Ok(dx.f_mul_(reciprocal)?.f_to_kind(input.kind())?)
}

/// [`rms_norm`] by a GPU's kernels, one for each direction. They round once, after the weight.
fn fused(x: &Tensor, weight: &Tensor, sink: Option<ParamSink>, epsilon: f64) -> Result<Tensor> {
    let width = weight.size();
    let (y, reciprocal) =
        no_grad(|| x.f_internal_fused_rms_norm(&width[..], Some(weight), epsilon))?;
    let (input, kept) = (x.shallow_clone(), weight.shallow_clone());
    own_gradient(&[x, weight], &y, move |grad| {
        let (dx, dweight) = rms_norm_backward(grad, &input, &reciprocal, &kept)?;
        if let Some(sink) = &sink {
            let dweight = dweight.f_view([1, -1])?;
            sink.with(|gradient, i| gradient.add_rows(i, 0, &dweight))?;
        }
        Ok(vec![Some(dx), None])
    })?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use super::*;
    use crate::{
        bridge::autograd,
        model::{
            FlatUnit,
            layer::Context,
            masks::Masks,
            modules::Norm,
            params::{LayerBuilder, Params, Places},
            unit_gradient::{Sink, UnitGradients},
        },
        tensor::cuda_is_available,
    };

    /// Beside the same norm as autograd sees it. In float32 within rounding, 1e-5; in bfloat16 within
    /// two of its steps, 2^-7 each.
    #[test]
    fn the_gradient_of_rms_norm_equals_autograds() {
        let gpu = cuda_is_available().then_some(Device::Cuda(0));
        if gpu.is_none() {
            println!("skipped on a GPU: libtorch sees no CUDA device here");
        }
        for device in [Some(Device::Cpu), gpu].into_iter().flatten() {
            for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 2e-2)] {
                for make in [Norm::rms, Norm::rms_plus_one] {
                    check(make, (kind, device), tolerance);
                }
            }
        }
    }

    fn check(
        make: fn(&mut LayerBuilder, &str, i64, f64) -> Norm,
        (kind, device): (Kind, Device),
        tolerance: f64,
    ) {
        let mut b = LayerBuilder::new("layer");
        let norm = make(&mut b, "norm", 8, 1e-3);
        let unit = FlatUnit::zeros(b.into_parts().0, device).unwrap();
        let _ = unit.cast_and_pad(kind, 1).unwrap();
        let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, device));
        no_grad(|| unit.params()[0].shallow_clone().copy_(&random(&[8])));
        let units: Rc<[FlatUnit]> = Rc::new([unit]);
        let places = Places::of_unit(&units, 0);
        let x = random(&[2, 3, 8]).to_kind(kind).set_requires_grad(true);
        let weight = random(&[2, 3, 8]).to_kind(kind);
        let masks = Masks::default();
        let run = |sink: Option<&Sink>| {
            let params = Params::new(&units, &places, sink);
            norm.forward(&params, &x, &Context::new(&masks)).unwrap()
        };
        let param = &units[0].params()[0];
        let y = run(None);
        let expected = autograd::grad(&[(&y, &weight)], &[&x, param]).unwrap();
        let sink = Sink::new(&units, Kind::Float);
        let own = run(Some(&sink));
        assert!(own.allclose(&y, tolerance, tolerance, false), "{kind:?} {device:?}");
        let step = Rc::new(RefCell::new(UnitGradients::new(&units, Kind::Float)));
        sink.turn_to(&step).unwrap();
        let made = autograd::grad(&[(&own, &weight)], &[&x, param]).unwrap();
        let flat = step.borrow_mut().take(0).unwrap().complete().unwrap();
        let made = [made[0].as_ref().unwrap(), &units[0].views(&flat)[0]];
        for (made, expected) in made.iter().zip(expected) {
            let [made, expected] = [*made, &expected.unwrap()].map(|x| x.to_kind(Kind::Float));
            let off = ((&made - &expected).norm() / expected.norm()).double_value(&[]);
            assert!(off < tolerance, "{kind:?} {device:?} {off}");
        }
    }

    /// libtorch's norm rounds where the one above does in float32, 1e-6 of values near 1, and gives
    /// the same number for each row.
    #[test]
    fn a_gpus_norm_is_this_norm() {
        let x = Tensor::randn([2, 3, 8], (Kind::Float, Device::Cpu));
        let weight = Tensor::randn([8], (Kind::Float, Device::Cpu));
        let (theirs, reciprocal) =
            x.f_internal_fused_rms_norm(&[8i64][..], Some(&weight), 1e-3).unwrap();
        let mean = x.square().mean_dim(&[-1i64][..], true, Kind::Float);
        let expected = (mean + 1e-3).rsqrt();
        assert!(reciprocal.allclose(&expected, 1e-6, 1e-6, false));
        assert!(theirs.allclose(&(&x * expected * &weight), 1e-6, 1e-6, false));
    }
}
