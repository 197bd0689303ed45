//! AdamW over flat units: libtorch's fused kernel, one call for all units of a step.
//!
//! The formula and its order are those of `torch.optim.AdamW(fused=True)`: the parameter decays by
//! `1 - lr * weight_decay`, then moves by `lr` times the bias-corrected average over the root of
//! the bias-corrected average square.

use crate::{
    bridge::ops::{AdamWNumbers, AdamWTensors, fused_adamw},
    config::AdamWConfig,
    error::Result,
    tensor::{Kind, Tensor},
};

/// The averages of one unit, laid out as the unit.
#[derive(Debug)]
pub struct Moments {
    /// Of the gradient.
    pub exp_avg: Tensor,
    /// Of its square.
    pub exp_avg_sq: Tensor,
}

/// What a schedule may set for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRates {
    /// The learning rate.
    pub lr: f64,
    /// The decay of the averages of the gradient and of its square.
    pub betas: (f64, f64),
}

/// The optimizer's state.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    moments: Vec<Moments>,
    step: u64,
}

impl AdamW {
    /// A state of zeros for these units.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new<'a>(
        config: AdamWConfig,
        units: impl IntoIterator<Item = &'a Tensor>,
    ) -> Result<Self> {
        let zeros = |unit: &Tensor| unit.f_zeros_like();
        let moments = |unit| Ok(Moments { exp_avg: zeros(unit)?, exp_avg_sq: zeros(unit)? });
        Ok(Self {
            config,
            moments: units.into_iter().map(moments).collect::<Result<_>>()?,
            step: 0,
        })
    }

    /// The settings.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// The averages of each unit.
    pub fn moments(&self) -> &[Moments] {
        &self.moments
    }

    /// Steps applied, which correct the averages' bias.
    pub fn applied_steps(&self) -> u64 {
        self.step
    }

    /// Goes on as after `step` steps; the averages are restored by their owner.
    pub fn set_applied_steps(&mut self, step: u64) {
        self.step = step;
    }

    /// Updates `params` in place with `grads` divided by `grad_scale`, at these rates. The
    /// gradients may be overwritten.
    ///
    /// # Errors
    /// libtorch refuses.
    pub fn step(
        &mut self,
        params: &[&Tensor],
        grads: &[Tensor],
        rates: StepRates,
        grad_scale: f64,
    ) -> Result<()> {
        let Some(first) = params.first() else { return Ok(()) };
        let scalar = |value: f64| Tensor::f_full([0i64; 0], value, (Kind::Float, first.device()));
        let step = scalar((self.step + 1) as f64)?;
        // An exact 1 would only cost a pass over the gradients.
        let scale = if grad_scale == 1.0 { None } else { Some(scalar(grad_scale)?) };
        let units: Vec<_> = self
            .moments
            .iter()
            .zip(params)
            .zip(grads)
            .map(|((moments, param), grad)| AdamWTensors {
                param,
                grad,
                exp_avg: &moments.exp_avg,
                exp_avg_sq: &moments.exp_avg_sq,
                step: &step,
            })
            .collect();
        let AdamWConfig { eps, weight_decay, .. } = self.config;
        let StepRates { lr, betas } = rates;
        fused_adamw(&units, AdamWNumbers { lr, betas, weight_decay, eps }, scale.as_ref())?;
        self.step += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Device;

    /// The paper's formula in float64 over 50 steps; the kernel computes in float32, hence 1e-5.
    #[test]
    fn fifty_steps_follow_the_formula() {
        let config = AdamWConfig { lr: 0.01, betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.1 };
        let param = Tensor::from_slice(&[1.0f32, -2.0, 0.5]);
        let mut optimizer = AdamW::new(config, [&param]).unwrap();
        let (mut p, mut m, mut v) = ([1.0f64, -2.0, 0.5], [0.0f64; 3], [0.0f64; 3]);
        for t in 1..=50 {
            let g: Vec<f64> = (0..3).map(|i| ((t * (i + 1)) as f64).sin()).collect();
            for i in 0..3 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.99 * v[i] + 0.01 * g[i] * g[i];
                let (m_hat, v_hat) =
                    (m[i] / (1.0 - 0.9f64.powi(t)), v[i] / (1.0 - 0.99f64.powi(t)));
                p[i] = p[i] * (1.0 - 0.01 * 0.1) - 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
            }
            // Three times the gradient, divided by three.
            let grad = Tensor::from_slice(&g).to_kind(Kind::Float) * 3.0;
            let rates = StepRates { lr: config.lr, betas: config.betas };
            optimizer.step(&[&param], &[grad], rates, 3.0).unwrap();
        }
        assert_eq!(optimizer.applied_steps(), 50);
        for (i, expected) in p.iter().enumerate() {
            let found = param.double_value(&[i as i64]);
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
        assert_eq!(optimizer.moments()[0].exp_avg.device(), Device::Cpu);
    }
}
