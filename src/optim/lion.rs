//! Lion (Chen et al. 2023): the sign of an average between momentum and gradient.
//!
//! With betas b1, b2: `c = b1 m + (1 - b1) g`, `p = p (1 - lr wd) - lr sign(c)`,
//! `m = b2 m + (1 - b2) g`. The sign of 0 is 0, as in the paper: a row of the embedding that no
//! token used stays where it is (in DeepSpeed's kernel it moves by `lr`).

use super::rule::{Hyperparameters, Rule, SliceTensors};
use crate::{config::optimizer::LionConfig, error::Result};

impl Rule for LionConfig {
    fn state_names(&self) -> &'static [&'static str] {
        &["exp_avg"]
    }

    fn betas(&self, betas: (f64, f64)) -> Vec<f64> {
        vec![betas.0, betas.1]
    }

    fn step(&self, parts: &mut [SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()> {
        parts.iter_mut().for_each(|part| step(part, hyper));
        Ok(())
    }
}

fn step(part: &mut SliceTensors, hyper: &Hyperparameters<'_>) {
    let Hyperparameters { lr, weight_decay, betas: (beta1, beta2), .. } = *hyper;
    hyper.unscale(&mut part.grad);
    let exp_avg = &mut part.state[0];
    let mut update = exp_avg.lerp(&part.grad, 1.0 - beta1).sign_();
    update *= lr;
    if weight_decay != 0.0 {
        part.param *= 1.0 - lr * weight_decay;
    }
    part.param -= &update;
    let _ = exp_avg.lerp_(&part.grad, 1.0 - beta2);
}

#[cfg(test)]
mod tests {
    use crate::{
        config::{
            OptimizerConfig,
            optimizer::{Algorithm, LionConfig},
        },
        optim::oracle::{compare, grad},
    };

    /// The paper's formula in float64, 50 steps; the same in float32, hence 1e-5.
    #[test]
    fn fifty_steps_follow_the_paper() {
        let config = LionConfig { betas: (0.9, 0.99) };
        let config = OptimizerConfig {
            weight_decay: 0.1,
            ..OptimizerConfig::new(Algorithm::Lion(config), 0.01)
        };
        let mut m = [0.0f64; 3];
        compare(&config, 1e-5, |t, p| {
            for i in 0..3 {
                let g = grad(t, i);
                let c = 0.9 * m[i] + 0.1 * g;
                p[i] = p[i] * (1.0 - 0.01 * 0.1) - 0.01 * c.signum();
                m[i] = 0.99 * m[i] + 0.01 * g;
            }
        });
    }
}
