//! Tests of update rules: fifty steps beside a formula in float64.

use super::{Optimizer, OptimizerPlan, ParamLayout, Scaling, StepRates, UnitLayout, UnitTensors};
use crate::{
    config::OptimizerConfig,
    dist::ProcessGroup,
    tensor::{Device, Kind, Tensor},
};

/// The values of the parameter before the first step.
pub(super) const START: [f64; 3] = [1.0, -2.0, 0.5];

/// The gradient of element `i` at step `t`, which counts from 1.
pub(super) fn grad(t: u64, i: usize) -> f64 {
    ((t * (i as u64 + 1)) as f64).sin()
}

/// An optimizer of one vector, "a", of this length.
pub(super) fn optimizer(config: &OptimizerConfig, len: i64) -> Optimizer {
    let param = ParamLayout { name: "a".into(), offset: 0, shape: vec![len], fan_in_out: None };
    let unit = UnitLayout { numel: len, params: vec![param] };
    Optimizer::new(OptimizerPlan::new(config, &[unit], None).unwrap())
}

/// Compares with `formula`, which does step `t` on a vector, to `tolerance`.
pub(super) fn compare(
    config: &OptimizerConfig,
    tolerance: f64,
    mut formula: impl FnMut(u64, &mut [f64]),
) {
    let mut expected = START;
    let param = Tensor::from_slice(&START).to_kind(Kind::Float);
    let mut optimizer = optimizer(config, START.len() as i64);
    let zeros = |(kind, numel)| Tensor::zeros([numel], (kind, Device::Cpu));
    let state: Vec<_> = optimizer.state_layout(0).into_iter().map(zeros).collect();
    let group = ProcessGroup::single(Device::Cpu).unwrap();
    let thrice = Scaling::of(3.0, Device::Cpu).unwrap();
    for t in 1..=50 {
        formula(t, &mut expected);
        let grad: Vec<f64> = (0..START.len()).map(|i| grad(t, i)).collect();
        // Three times the gradient, divided by three.
        let grad = Tensor::from_slice(&grad).to_kind(Kind::Float) * 3.0;
        let rates = StepRates { lr: config.lr, betas: config.betas() };
        let tensors = UnitTensors { param: &param, grad: &grad, state: &state };
        optimizer.update(&group, &[(0, tensors)], rates, Some(&thrice)).unwrap();
        optimizer.end_step();
    }
    assert_eq!(optimizer.applied_steps(), 50);
    for (i, expected) in expected.iter().enumerate() {
        let found = param.double_value(&[i as i64]);
        assert!((found - expected).abs() < tolerance, "{config:?}: {found} is not {expected}");
    }
}
