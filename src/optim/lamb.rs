//! LAMB (You et al. 2020), as DeepSpeed's `FusedLamb`: AdamW's direction, whose length is that of
//! the parameter.
//!
//! With Adam's corrected averages m and v: `u = m / (sqrt(v) + eps) + wd p` and
//! `p = p - lr r u`, where the trust ratio `r = |p| / |u|` of a whole parameter is held between
//! `min_coeff` and `max_coeff`, and is 1 where one of the norms is 0.

use super::{
    flat_slice::ShardParamInfo,
    rule::{GroupUpdate, Hyperparameters, Rule, SliceTensors, UnitContext},
};
use crate::{
    config::optimizer::LambConfig,
    dist::{ReduceOp, ShardSpec},
    error::Result,
    tensor::{Kind, Tensor},
};

impl Rule for LambConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn betas(&self, betas: (f64, f64)) -> Vec<f64> {
        vec![betas.0, betas.1]
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

/// Takes the gradient into the averages and leaves the direction in its place.
fn step(config: &LambConfig, part: &mut SliceTensors, hyper: &Hyperparameters<'_>) {
    hyper.unscale(&mut part.grad);
    let update = direction(config, part, hyper);
    part.grad.copy_(&update);
}

/// Moves along the directions, by the ratios of whole parameters. Each rank sums the squares of its
/// slice of the unit, also where it has all of it, so that all ranks have the same ratios.
fn finish(config: &LambConfig, context: &UnitContext<'_>, update: &GroupUpdate<'_>) -> Result<()> {
    let shard = ShardSpec::of(context.group);
    let first_index = context.params.partition_point(|param| param.unit < context.unit);
    let count = context.params.partition_point(|param| param.unit <= context.unit) - first_index;
    let device = context.group.device();
    let squares = Tensor::f_zeros([2, count as i64], (Kind::Double, device))?;
    let index = |shard_param: &ShardParamInfo| (shard_param.index - first_index) as i64;
    for (slice, shard_param) in update.shard_params() {
        let first = slice.unit_offset + shard_param.offset;
        let own = shard.overlap(context.unit_numel, first, first + shard_param.len);
        if let Some((from, to, _)) = own {
            let at = slice.offset + from - slice.unit_offset;
            for (row, flat) in [(0, update.param), (1, update.grad)] {
                let norm = flat.narrow(0, at, to - from).norm().to_kind(Kind::Double);
                squares.get(row).get(index(shard_param)).copy_(&norm.square());
            }
        }
    }
    context.group.all_reduce(&squares, ReduceOp::Sum)?;
    let norms = squares.sqrt().to_kind(Kind::Float).to_device(update.param.device());
    let ratios = trust_ratio(config, &norms.get(0), &norms.get(1)) * update.hyperparameters.lr;
    for (slice, shard_param) in update.shard_params() {
        let of_shard =
            |flat: &Tensor| flat.narrow(0, slice.offset + shard_param.offset, shard_param.len);
        let mut param = of_shard(update.param);
        param -= of_shard(update.grad) * ratios.get(index(shard_param));
    }
    Ok(())
}

/// AdamW's direction, weight decay included, after the averages have taken the gradient in.
fn direction(config: &LambConfig, part: &mut SliceTensors, hyper: &Hyperparameters<'_>) -> Tensor {
    let (beta1, beta2) = hyper.betas;
    let [exp_avg, exp_avg_sq] = part.state.as_mut_slice() else {
        unreachable!("LAMB has two averages")
    };
    let _ = exp_avg.lerp_(&part.grad, 1.0 - beta1);
    let _ = exp_avg_sq.lerp_(&part.grad.square(), 1.0 - beta2);
    let (correction1, correction2) =
        if config.bias_correction { hyper.bias_corrections() } else { (1.0, 1.0) };
    let mut denominator = &*exp_avg_sq / correction2;
    if config.eps_inside_sqrt {
        denominator += config.eps;
        let _ = denominator.sqrt_();
    } else {
        let _ = denominator.sqrt_();
        denominator += config.eps;
    }
    denominator *= correction1;
    let mut update = &*exp_avg / denominator;
    if hyper.weight_decay != 0.0 {
        update += &part.param * hyper.weight_decay;
    }
    update
}

/// Of tensors of norms, so that a device does not wait for them.
fn trust_ratio(config: &LambConfig, param: &Tensor, update: &Tensor) -> Tensor {
    let ratio = (param / update).clamp(config.min_coeff, config.max_coeff);
    let is_defined = param.gt(0.0).logical_and(&update.gt(0.0));
    ratio.where_self(&is_defined, &param.ones_like())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{OptimizerConfig, optimizer::Algorithm},
        optim::oracle::{START, compare, grad},
    };

    /// The paper's formula in float64, 50 steps, with the ratio free, at both limits, with eps
    /// under the root and without the correction; the same in float32, hence 1e-5.
    #[test]
    fn fifty_steps_follow_the_paper() {
        let usual = LambConfig { eps: 1e-3, ..LambConfig::default() };
        for config in [
            usual,
            LambConfig { max_coeff: 0.5, ..usual },
            LambConfig { min_coeff: 3.0, ..usual },
            LambConfig { eps_inside_sqrt: true, ..usual },
            LambConfig { bias_correction: false, ..usual },
        ] {
            follow(config);
        }
    }

    fn follow(config: LambConfig) {
        let (lr, decay) = (0.01, 0.1);
        let optimizer = OptimizerConfig {
            weight_decay: decay,
            ..OptimizerConfig::new(Algorithm::Lamb(config), lr)
        };
        let (mut m, mut v) = ([0.0f64; START.len()], [0.0f64; START.len()]);
        compare(&optimizer, 1e-5, |t, p| {
            let correction = |beta: f64| match config.bias_correction {
                true => 1.0 - beta.powi(t as i32),
                false => 1.0,
            };
            let update: Vec<f64> = (0..p.len())
                .map(|i| {
                    let g = grad(t, i);
                    m[i] = 0.9 * m[i] + 0.1 * g;
                    v[i] = 0.999 * v[i] + 0.001 * g * g;
                    let (m, v) = (m[i] / correction(0.9), v[i] / correction(0.999));
                    let root = match config.eps_inside_sqrt {
                        true => (v + config.eps).sqrt(),
                        false => v.sqrt() + config.eps,
                    };
                    m / root + decay * p[i]
                })
                .collect();
            let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
            let ratio = (norm(p) / norm(&update)).clamp(config.min_coeff, config.max_coeff);
            for (p, u) in p.iter_mut().zip(update) {
                *p -= lr * ratio * u;
            }
        });
    }

    #[test]
    fn without_a_norm_the_ratio_is_one() {
        let config = LambConfig::default();
        let some = Tensor::from_slice(&[3.0f32, 4.0]);
        let none = some.zeros_like();
        let ratio =
            |p: &Tensor, u: &Tensor| trust_ratio(&config, &p.norm(), &u.norm()).double_value(&[]);
        assert_eq!([ratio(&none, &some), ratio(&some, &none), ratio(&none, &none)], [1.0; 3]);
        assert_eq!(ratio(&some, &(&some * 0.5)), 2.0);
    }
}
