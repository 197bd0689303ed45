//! Muon (Jordan et al. 2024): the average gradient of a matrix, made orthogonal.
//!
//! As `torch.optim.Muon` and DeepSpeed's: `m = mu m + (1 - mu) g`; with Nesterov's momentum
//! `u = mu m + (1 - mu) g`, else `u = m`; `p = p (1 - lr wd) - lr s O(u)`. `O` is Newton-Schulz's
//! iteration of fifth order towards the orthogonal matrix nearest to `u`, which with these
//! coefficients brings the singular values near 1, and `s = sqrt(max(1, fan_out / fan_in))`.
//!
//! `s` goes by what the layer does, not by how its matrix is stored: PyTorch and DeepSpeed take
//! rows for outputs, which transformers' `Conv1D` stores as columns. A fused matrix, such as that
//! of queries, keys and values, is one matrix, as it is there.
//!
//! On a CPU the iteration is in float32. On a GPU it is as in DeepSpeed: float16 on the Gram
//! matrix, bfloat16 on the matrix itself.

use super::{
    flat_slice::PlanParam,
    rule::{GroupUpdate, Hyperparameters, Rule, SliceTensors, UnitContext},
};
use crate::{
    config::optimizer::{MuonConfig, NsMethod},
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// Jordan's coefficients of the iteration: `x (a + b x^2 + c x^4)` of each singular value x.
const A: f64 = 3.4445;
const B: f64 = -4.7750;
const C: f64 = 2.0315;

/// The least norm that a matrix is divided by.
const EPSILON: f64 = 1e-7;

/// Before this iteration the Gram matrix is computed anew, which keeps it exact in float16.
const RESTART: u32 = 2;

impl Rule for MuonConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["momentum_buffer"]
    }

    fn betas(&self, betas: (f64, f64)) -> Vec<f64> {
        vec![betas.0]
    }

    fn needs_whole_parameters(&self) -> bool {
        true
    }

    fn step(&self, parts: &mut [SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
        parts.iter_mut().for_each(|part| step(self, part, hyper));
        Ok(())
    }

    fn finish(&self, context: &UnitContext<'_>, update: &GroupUpdate<'_>) -> Result<()> {
        finish(self, context, update)
    }
}

/// Takes the gradient into its average and leaves the update, not yet orthogonal, in its place.
fn step(config: &MuonConfig, part: &mut SliceTensors, hyper: &Hyperparameters<'_>) {
    hyper.unscale(&mut part.grad);
    let momentum = hyper.betas.0;
    let buffer = &mut part.state[0];
    let _ = buffer.lerp_(&part.grad, 1.0 - momentum);
    match config.nesterov {
        true => drop(part.grad.lerp_(buffer, momentum)),
        false => part.grad.copy_(buffer),
    }
}

/// Moves along the orthogonal updates. Where a rank has a slice of the unit, the updates are
/// gathered, and a rank makes those matrices orthogonal of which it has a part.
fn finish(config: &MuonConfig, context: &UnitContext<'_>, update: &GroupUpdate<'_>) -> Result<()> {
    let Hyperparameters { lr, weight_decay, .. } = update.hyperparameters;
    let device = context.group.device();
    let gradient = update.grad.f_to_device(device)?;
    let whole = match context.shard {
        Some(_) => {
            let whole = Tensor::f_empty([context.unit_numel], (Kind::Float, device))?;
            context.group.all_gather_into(&whole, &gradient.f_contiguous()?)?;
            whole
        }
        None => gradient,
    };
    for (slice, shard_param) in update.shard_params() {
        let PlanParam { offset, shape, .. } = &context.params[shard_param.index];
        let matrix = whole.narrow(0, *offset, shape.iter().product()).view(&shape[..]);
        let (fan_in, fan_out) = shard_param.fan_in_out.unwrap_or((1, 1));
        let scale = (fan_out as f64 / fan_in as f64).max(1.0).sqrt();
        let orthogonal = orthogonalize(&matrix, config.ns_method, config.ns_steps);
        let mut param = update.param.narrow(0, slice.offset + shard_param.offset, shard_param.len);
        if weight_decay != 0.0 {
            param *= 1.0 - lr * weight_decay;
        }
        let own =
            orthogonal.reshape([-1]).narrow(0, shard_param.start, shard_param.len) * (lr * scale);
        param -= own.to_device(param.device());
    }
    Ok(())
}

/// A float32 matrix with the singular vectors of `matrix`, `[R, C]`, and singular values near 1.
fn orthogonalize(matrix: &Tensor, method: NsMethod, steps: u32) -> Tensor {
    let size = matrix.size();
    let (is_tall, is_square) = (size[0] > size[1], size[0] == size[1]);
    let kind = match (matrix.device(), method) {
        (Device::Cpu, _) => Kind::Float,
        (_, NsMethod::Gram) => Kind::Half,
        (_, NsMethod::Standard) => Kind::BFloat16,
    };
    let upright = |x: Tensor| if is_tall { x.tr() } else { x };
    let x = upright(matrix.shallow_clone());
    // In float32: small gradients would vanish in float16 before they are divided by their norm.
    let x = (&x / x.norm().clamp_min(EPSILON)).to_kind(kind);
    let x = match method {
        NsMethod::Gram if !is_square => iterate_on_gram(x, steps),
        _ => iterate(x, steps),
    };
    upright(x).to_kind(Kind::Float)
}

/// `steps` iterations of `x = a x + b x x' x + c x x' x x' x`.
fn iterate(mut x: Tensor, steps: u32) -> Tensor {
    for _ in 0..steps {
        let gram = x.matmul(&x.tr());
        x = &x * A + polynomial(&gram).matmul(&x);
    }
    x
}

/// The same, gathered in a factor of the size of the Gram matrix `x x'` (Dao 2026).
fn iterate_on_gram(mut x: Tensor, steps: u32) -> Tensor {
    let mut gram = x.matmul(&x.tr());
    let mut factor: Option<Tensor> = None;
    for i in 0..steps {
        if i == RESTART
            && let Some(factor) = factor.take()
        {
            x = factor.matmul(&x);
            gram = x.matmul(&x.tr());
        }
        let z = polynomial(&gram);
        if i + 1 < steps && i + 1 != RESTART {
            gram = apply(&z, &apply(&z, &gram));
        }
        factor = Some(match factor {
            Some(factor) => apply(&z, &factor),
            None => {
                let _ = z.diagonal(0, 0, 1).g_add_scalar_(A);
                z
            }
        });
    }
    factor.map_or_else(|| x.shallow_clone(), |factor| factor.matmul(&x))
}

/// `b gram + c gram gram`.
fn polynomial(gram: &Tensor) -> Tensor {
    gram * B + gram.matmul(gram) * C
}

/// One iteration's factor times `y`: `a y + z y`.
fn apply(z: &Tensor, y: &Tensor) -> Tensor {
    y * A + z.matmul(y)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: i64, columns: i64) -> Tensor {
        let x = Tensor::arange(rows * columns, (Kind::Double, Device::Cpu));
        ((&x * 1.7).sin() + (&x * 0.3).cos()).to_kind(Kind::Float).view([rows, columns])
    }

    /// The iteration acts on each singular value alone: five times x (a + b x^2 + c x^4), in
    /// float64, with the singular vectors of the matrix. float32 in the iteration, hence 1e-4.
    #[test]
    fn singular_values_go_through_the_polynomial() {
        for (rows, columns) in [(6, 6), (4, 9), (9, 4)] {
            let matrix = matrix(rows, columns);
            let exact = matrix.to_kind(Kind::Double);
            let (u, mut s, v) = (&exact / exact.norm()).svd(true, true);
            for _ in 0..5 {
                let square = s.square();
                s = &s * (square.square() * C + &square * B + A);
            }
            let expected = (u * s).matmul(&v.tr()).to_kind(Kind::Float);
            for method in [NsMethod::Standard, NsMethod::Gram] {
                let found = orthogonalize(&matrix, method, 5);
                let off = (&found - &expected).abs().max().double_value(&[]);
                assert!(off < 1e-4, "{rows}x{columns}, {method:?}: {off}");
            }
        }
    }

    #[test]
    fn nothing_stays_nothing() {
        let zeros = Tensor::zeros([3, 5], (Kind::Float, Device::Cpu));
        for method in [NsMethod::Standard, NsMethod::Gram] {
            assert!(orthogonalize(&zeros, method, 5).equal(&zeros));
        }
    }

    /// Twice the iterations bring the singular values into Jordan's band, whatever the scale.
    #[test]
    fn the_result_is_nearly_orthogonal() {
        for scale in [1e-6, 1.0, 1e6] {
            let x = orthogonalize(&(matrix(4, 9) * scale), NsMethod::Gram, 10);
            let (_, s, _) = x.svd(true, true);
            let (low, high) = (s.min().double_value(&[]), s.max().double_value(&[]));
            assert!(low > 0.6 && high < 1.3, "{scale}: {low} to {high}");
        }
    }
}
