//! Adam and AdamW (Kingma and Ba 2015; Loshchilov and Hutter 2019): libtorch's fused kernel.
//!
//! The formula and its order are those of `torch.optim.AdamW(fused=True)`: the parameter decays by
//! `1 - lr * weight_decay`, then moves by `lr` times the bias-corrected average over the root of
//! the bias-corrected average square. Without `adam_w_mode` it is `torch.optim.Adam`, where
//! `weight_decay` times the parameter is a part of the gradient.

use super::rule::{Hyperparameters, Rule, SliceTensors, scalar};
use crate::{
    bridge::fused::{AdamHyperparameters, fused_adam},
    config::optimizer::AdamConfig,
    error::Result,
};

/// A step so late that the powers of the betas are 0 and nothing is left to correct.
const NO_CORRECTION: f64 = f32::MAX as f64;

impl Rule for AdamConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg", "exp_avg_sq"]
    }

    fn betas(&self, betas: (f64, f64)) -> Vec<f64> {
        vec![betas.0, betas.1]
    }

    fn is_fused(&self) -> bool {
        true
    }

    fn step(&self, parts: &mut [SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
        step(self, parts, hyper)
    }
}

fn step(config: &AdamConfig, parts: &[SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
    let Some(first) = parts.first() else { return Ok(()) };
    let (step, of_kernel) = for_kernel(config, hyper);
    let step = scalar(step, &first.param);
    let parts: Vec<_> = parts.iter().map(SliceTensors::fused).collect();
    fused_adam(&parts, &step, of_kernel, hyper.scaling)
}

/// The number of a step and its hyperparameters, as kernels take them.
pub(super) fn for_kernel(
    config: &AdamConfig,
    hyper: &Hyperparameters<'_>,
) -> (f64, AdamHyperparameters) {
    let step = if config.bias_correction { hyper.step as f64 } else { NO_CORRECTION };
    let of_kernel = AdamHyperparameters {
        decoupled: config.adam_w_mode,
        lr: hyper.lr,
        betas: hyper.betas,
        weight_decay: hyper.weight_decay,
        eps: config.eps,
    };
    (step, of_kernel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{OptimizerConfig, optimizer::Algorithm},
        optim::oracle::{compare, grad},
    };

    /// The paper's formula in float64 over 50 steps, with and without the correction of the bias,
    /// the decay in the gradient or beside it; the kernel computes in float32, hence 1e-5.
    #[test]
    fn fifty_steps_follow_the_formula() {
        for (adam_w_mode, bias_correction) in
            [(true, true), (true, false), (false, true), (false, false)]
        {
            follow(AdamConfig { betas: (0.9, 0.99), eps: 1e-8, adam_w_mode, bias_correction });
        }
    }

    fn follow(config: AdamConfig) {
        let optimizer = OptimizerConfig {
            weight_decay: 0.1,
            ..OptimizerConfig::new(Algorithm::Adam(config), 0.01)
        };
        let (mut m, mut v) = ([0.0f64; 3], [0.0f64; 3]);
        compare(&optimizer, 1e-5, |t, p| {
            let correction = |beta: f64| match config.bias_correction {
                true => 1.0 - beta.powi(t as i32),
                false => 1.0,
            };
            for i in 0..3 {
                let g = grad(t, i) + if config.adam_w_mode { 0.0 } else { 0.1 * p[i] };
                m[i] = 0.9 * m[i] + 0.1 * g;
                v[i] = 0.99 * v[i] + 0.01 * g * g;
                let (m_hat, v_hat) = (m[i] / correction(0.9), v[i] / correction(0.99));
                let decay = if config.adam_w_mode { 0.01 * 0.1 } else { 0.0 };
                p[i] = p[i] * (1.0 - decay) - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
            }
        });
    }
}
