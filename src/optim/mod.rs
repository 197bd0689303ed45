//! The optimizers over flat parameter units, and the norm that gradients are clipped by.
//!
//! A [`Plan`] says which parts of which units are updated alike (`plan.rs`), so that its memory is
//! known before it is taken. An [`Optimizer`] does the steps of a plan, unit by unit, so that the
//! state of a unit (`state.rs`) has to be at hand only then. A rule is a function of parameters,
//! gradients, state and the step's hyperparameters (`rule.rs`), one file each: `adam.rs`, `sgd.rs` and
//! `adagrad.rs` are libtorch's fused kernels, `lion.rs` is arithmetic on whole parts, `lamb.rs` and
//! `muon.rs` also look at each parameter by itself.

mod adagrad;
mod adam;
mod algorithm;
mod clip;
mod lamb;
mod layout;
mod lion;
mod muon;
#[cfg(test)]
mod oracle;
mod plan;
mod rule;
mod sgd;
mod span;
mod state;
mod whole;

pub use crate::bridge::fused::Scaling;
pub use clip::{clip_divisor, squared_norm};
pub use layout::{ParamLayout, UnitLayout};
pub use plan::Plan;
pub use whole::{StateName, StatePiece};

use self::{
    algorithm::rule_of,
    plan::{Group, GroupSettings, state_kind},
    rule::{Hyperparameters, Part, Work, World},
    span::{PlanParam, Span},
    state::State,
};
use crate::{
    config::{OptimizerConfig, optimizer::Algorithm},
    dist::{ProcessGroup, ShardSpec},
    error::Result,
    tensor::{Kind, Tensor, guard, no_grad},
};

/// What a schedule may set for one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRates {
    /// The learning rate.
    pub lr: f64,
    /// The decay of the averages of the gradient and of its square; where there is one average,
    /// the first is its momentum, see [`OptimizerConfig::betas`].
    pub betas: (f64, f64),
}

/// What a step's rates are for one group of parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupRates {
    /// The learning rate.
    pub lr: f64,
    /// The decays of the group's averages: two betas, one momentum, or none.
    pub betas: Vec<f64>,
}

/// The rules for the parameters of a model, and how far they have come. The state that they need of
/// each unit ([`Optimizer::state_layout`]) is kept by the caller.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<Group>,
    params: Vec<PlanParam>,
    units: Vec<i64>,
    shard: Option<ShardSpec>,
    step: u64,
}

/// What a step changes of one unit, or of this rank's slice of it.
#[derive(Debug, Clone, Copy)]
pub struct UnitTensors<'a> {
    /// The weights, float32 flat.
    pub param: &'a Tensor,
    /// Their gradients, laid out alike. They may be overwritten.
    pub grad: &'a Tensor,
    /// The state, as [`Optimizer::state_layout`] has it.
    pub state: &'a [Tensor],
}

impl Optimizer {
    /// An optimizer before its first step.
    pub fn new(plan: Plan) -> Self {
        let Plan { config, groups, params, units, shard } = plan;
        Self { config, groups, params, units, shard, step: 0 }
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps applied, which correct the averages' bias.
    pub fn applied_steps(&self) -> u64 {
        self.step
    }

    /// Goes on as after `step` steps.
    pub fn set_applied_steps(&mut self, step: u64) {
        self.step = step;
    }

    /// The dtype of state tensors.
    pub fn state_kind(&self) -> Kind {
        state_kind(&self.config)
    }

    /// How many units there are.
    pub fn units(&self) -> usize {
        self.units.len()
    }

    /// Elements of a unit that this rank updates.
    pub fn unit_numel(&self, unit: usize) -> i64 {
        self.shard.unwrap_or(ShardSpec::WHOLE).range(self.units[unit]).1
    }

    /// Elements of each state tensor of a unit: those of the first group's first span, of its next
    /// span, of the next group. All are flat, and zeros before the first step.
    pub fn state_layout(&self, unit: usize) -> Vec<i64> {
        let spans = self.spans(unit).flat_map(|(group, span)| {
            rule_of(&group.settings.rule).state_names().iter().map(|_| span.len)
        });
        spans.collect()
    }

    /// The spans of a unit, in the order of [`Optimizer::state_layout`].
    fn spans(&self, unit: usize) -> impl Iterator<Item = (&Group, &Span)> {
        let of_group = move |group| spans_of(group, unit).map(move |span| (group, span));
        self.groups.iter().flat_map(of_group)
    }

    /// What `rates` are for each group of parameters that are updated alike.
    pub fn group_rates(&self, rates: StepRates) -> Vec<GroupRates> {
        let of_group = |Group { settings, .. }: &Group| {
            let StepRates { lr, betas } = rates_of(&self.config, settings, rates);
            GroupRates { lr, betas: rule_of(&settings.rule).betas(betas) }
        };
        self.groups.iter().map(of_group).collect()
    }

    /// Whether each step is libtorch's fused kernels alone, which read from the device whether they
    /// may change anything ([`Scaling::found_inf`]).
    pub fn is_fused(&self) -> bool {
        self.groups.iter().all(|group| rule_of(&group.settings.rule).is_fused())
    }

    /// Updates units in place at these rates, with their gradients scaled. A step does so for every
    /// unit once, together or in parts, in the same order on every rank of `group`, and ends with
    /// [`Optimizer::end_step`]. Gradients and state in 16 bits are float32 for one span at a time,
    /// or gradients in whole where the rule looks at whole parameters.
    pub fn update(
        &self,
        group: &ProcessGroup,
        units: &[(usize, UnitTensors<'_>)],
        rates: StepRates,
        scaling: Option<&Scaling>,
    ) -> Result<()> {
        let step = self.step + 1;
        let update = || {
            let mut updates: Vec<_> =
                units.iter().map(|unit| self.unit_update(unit)).collect::<Result<_>>()?;
            for of_group in &self.groups {
                let Group { settings, .. } = of_group;
                let StepRates { lr, betas } = rates_of(&self.config, settings, rates);
                let weight_decay = settings.weight_decay;
                let hyperparameters = Hyperparameters { step, lr, weight_decay, betas, scaling };
                update_spans(of_group, &mut updates, &hyperparameters)?;
                for UnitUpdate { unit, param, grad, .. } in &updates {
                    if of_group.units.contains(unit) {
                        let spans = spans_of(of_group, *unit).collect();
                        let work = Work { spans, param, grad, hyperparameters };
                        rule_of(&settings.rule).finish(&self.world(group, *unit), &work)?;
                    }
                }
            }
            Ok(())
        };
        guard("the optimizer's step", || no_grad(update))
    }

    fn unit_update<'a>(
        &self,
        (unit, tensors): &(usize, UnitTensors<'a>),
    ) -> Result<UnitUpdate<'a>> {
        let UnitTensors { param, grad, state } = *tensors;
        let grad = match rule_of(&self.config.algorithm).needs_whole_parameters() {
            true => grad.f_to_kind(Kind::Float)?,
            false => grad.shallow_clone(),
        };
        Ok(UnitUpdate { unit: *unit, param, grad, state: state.iter() })
    }

    fn world<'a>(&'a self, group: &'a ProcessGroup, unit: usize) -> World<'a> {
        let unit_numel = self.units[unit];
        World { group, shard: self.shard, params: &self.params, unit, unit_numel }
    }

    /// Ends a step in which every unit was updated.
    pub fn end_step(&mut self) {
        self.step += 1;
    }
}

/// The spans that a group has of a unit.
fn spans_of(group: &Group, unit: usize) -> impl Iterator<Item = &Span> {
    group.spans.iter().filter(move |span| span.unit == unit)
}

/// The rates of a step for parameters with these settings.
fn rates_of(config: &OptimizerConfig, settings: &GroupSettings, rates: StepRates) -> StepRates {
    let betas = match (&config.algorithm, &settings.rule) {
        // A schedule cycles Muon's momentum, not AdamW's betas beside it.
        (Algorithm::Muon(_), Algorithm::Adam(adam)) => adam.betas,
        _ => rates.betas,
    };
    StepRates { lr: rates.lr * settings.lr_factor, betas }
}

/// A unit on its way through the groups.
struct UnitUpdate<'a> {
    unit: usize,
    param: &'a Tensor,
    grad: Tensor,
    /// The state of the groups that are still to come.
    state: std::slice::Iter<'a, Tensor>,
}

/// One step on the spans of a group: all in one call, or one after the other where parts have to be
/// made float32 for it.
fn update_spans(
    group: &Group,
    updates: &mut [UnitUpdate<'_>],
    hyperparameters: &Hyperparameters<'_>,
) -> Result<()> {
    let rule = rule_of(&group.settings.rule);
    let slots = rule.state_names().len();
    let mut parts = Vec::new();
    for UnitUpdate { unit, param, grad, state } in updates {
        for span in spans_of(group, *unit) {
            let flat = |unit: &Tensor| unit.narrow(0, span.offset, span.len);
            let state: Vec<_> = state.by_ref().take(slots).map(State).collect();
            let is_float = grad.kind() == Kind::Float && state.iter().all(State::is_float);
            let mut part = Part {
                param: flat(param),
                grad: flat(grad).to_kind(Kind::Float),
                state: state.iter().map(State::load).collect(),
            };
            if is_float {
                parts.push(part);
                continue;
            }
            rule.step(std::slice::from_mut(&mut part), hyperparameters)?;
            for (i, (state, loaded)) in state.iter().zip(&part.state).enumerate() {
                state.store(
                    loaded,
                    span.place,
                    &[hyperparameters.step, span.unit as u64, i as u64],
                );
            }
        }
    }
    rule.step(&mut parts, hyperparameters)
}
