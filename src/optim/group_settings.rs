//! How a parameter is updated: its rule and rates, by a config and its groups.

use super::{layout::ParamLayout, overrides::GroupOverrides};
use crate::{
    config::{
        OptimizerConfig,
        optimizer::{AdamConfig, Algorithm},
    },
    error::{Code, Error, Result},
};

/// How a parameter is updated.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct GroupSettings {
    pub(super) rule: Algorithm,
    /// Its learning rate is that of the schedule times this.
    pub(super) lr_factor: f64,
    pub(super) weight_decay: f64,
}

/// How this parameter is updated.
pub(super) fn settings_of(
    config: &OptimizerConfig,
    choices: &GroupOverrides<'_>,
    param: &ParamLayout,
) -> Result<GroupSettings> {
    let (rule, usual_lr) = rule(config, param);
    let lr = choices.lr(&param.name)?.unwrap_or(usual_lr);
    let weight_decay = choices.weight_decay(&param.name)?.unwrap_or(config.weight_decay);
    if lr != config.lr && config.lr == 0.0 {
        let message = format!(
            "the learning rate {lr} of {} has no proportion to the optimizer's, which is 0",
            param.name
        );
        return Err(Error::new(Code::BadValue, message).option("optimizer.lr"));
    }
    let lr_factor = if lr == config.lr { 1.0 } else { lr / config.lr };
    Ok(GroupSettings { rule, lr_factor, weight_decay })
}

/// The rule for this parameter, and the learning rate that it has without a group.
fn rule(config: &OptimizerConfig, param: &ParamLayout) -> (Algorithm, f64) {
    match &config.algorithm {
        Algorithm::Muon(muon) if param.fan_in_out.is_none() => {
            let adam = AdamConfig { betas: muon.betas, eps: muon.eps, ..AdamConfig::default() };
            (Algorithm::Adam(adam), muon.adam_lr.unwrap_or(config.lr))
        }
        algorithm => (algorithm.clone(), config.lr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{
        OptimizerPlan,
        plan::tests::{faults, group, units},
    };

    #[test]
    fn a_rate_of_zero_has_no_proportion() {
        let config = OptimizerConfig {
            lr: 0.0,
            groups: vec![group(&["wte*"], Some(1e-3), None)],
            ..OptimizerConfig::default()
        };
        assert_eq!(faults(config.clone())[0].0, "optimizer.lr");
        let still = OptimizerConfig { lr: 1e-3, ..config };
        let still = OptimizerConfig { groups: vec![group(&["wte*"], Some(0.0), None)], ..still };
        let plan = OptimizerPlan::new(&still, &units(), None).unwrap();
        assert_eq!(plan.groups[0].settings.lr_factor, 0.0);
    }
}
