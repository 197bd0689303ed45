//! The optimizers over flat parameter units, and the norm that gradients are clipped by.
//!
//! A [`Plan`] says which parts of which units are updated alike (`plan.rs`), so that its memory is
//! known before it is taken. An [`Optimizer`] does the steps of a plan, unit by unit, so that the
//! state of a unit (`state.rs`) has to be at hand only then. A rule is a function of parameters,
//! gradients, state and the step's numbers (`rule.rs`), one file each: `adam.rs`, `sgd.rs` and
//! `adagrad.rs` are libtorch's fused kernels, `lion.rs` is arithmetic on whole parts, `lamb.rs` and
//! `muon.rs` also look at each parameter by itself.

mod adagrad;
mod adam;
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
mod state;
mod whole;

pub use clip::{clip_coefficient, squared_norm};
pub use layout::{ParamLayout, UnitLayout};
pub use plan::Plan;
pub use whole::{StateName, StatePiece};

use self::{
    plan::{Group, PlanParam, Setting, Span, state_kind, state_names},
    rule::{Numbers, Part, Work, World, finish, update},
    state::State,
};
use crate::{
    config::{OptimizerConfig, optimizer::Algorithm},
    dist::{ProcessGroup, Shard},
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
    shard: Option<Shard>,
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
        self.shard.unwrap_or(Shard::WHOLE).range(self.units[unit]).1
    }

    /// Elements of each state tensor of a unit: those of the first group's first span, of its next
    /// span, of the next group. All are flat, and zeros before the first step.
    pub fn state_layout(&self, unit: usize) -> Vec<i64> {
        let spans = self
            .spans(unit)
            .flat_map(|(group, span)| state_names(&group.setting.rule).iter().map(|_| span.len));
        spans.collect()
    }

    /// The spans of a unit, in the order of [`Optimizer::state_layout`].
    fn spans(&self, unit: usize) -> impl Iterator<Item = (&Group, &Span)> {
        let of_group = move |group| spans_of(group, unit).map(move |span| (group, span));
        self.groups.iter().flat_map(of_group)
    }

    /// What `rates` are for each group of parameters that are updated alike.
    pub fn group_rates(&self, rates: StepRates) -> Vec<GroupRates> {
        let of_group = |Group { setting, .. }: &Group| {
            let StepRates { lr, betas: (first, second) } = rates_of(&self.config, setting, rates);
            let betas = match setting.rule {
                Algorithm::Adam(_) | Algorithm::Lamb(_) | Algorithm::Lion(_) => vec![first, second],
                Algorithm::Sgd(_) | Algorithm::Muon(_) => vec![first],
                Algorithm::Adagrad(_) => Vec::new(),
            };
            GroupRates { lr, betas }
        };
        self.groups.iter().map(of_group).collect()
    }

    /// Updates one unit in place at these rates, with its gradient divided by `grad_scale`. A step
    /// does so for every unit, in the same order on every rank of `group`, and ends with
    /// [`Optimizer::end_step`]. Gradients and state in 16 bits are float32 for one span at a time,
    /// or gradients in whole where the rule looks at whole parameters.
    ///
    /// # Errors
    /// libtorch refuses; another rank fails.
    pub fn update(
        &self,
        group: &ProcessGroup,
        unit: usize,
        UnitTensors { param, grad, state }: UnitTensors<'_>,
        rates: StepRates,
        grad_scale: f64,
    ) -> Result<()> {
        let whole: Tensor;
        let grad = if self.config.algorithm.needs_whole_parameters() {
            whole = grad.f_to_kind(Kind::Float)?;
            &whole
        } else {
            grad
        };
        let world = World {
            group,
            shard: self.shard,
            params: &self.params,
            unit,
            unit_numel: self.units[unit],
        };
        let mut state = state.iter();
        let update = || {
            for of_unit in self.groups.iter().filter(|group| group.units.contains(&unit)) {
                let Group { setting, .. } = of_unit;
                let StepRates { lr, betas } = rates_of(&self.config, setting, rates);
                let weight_decay = setting.weight_decay;
                let step = self.step + 1;
                let numbers = Numbers { step, lr, weight_decay, betas, grad_scale };
                let spans: Vec<&Span> = spans_of(of_unit, unit).collect();
                for span in &spans {
                    let slots = state_names(&setting.rule).len();
                    let state: Vec<_> = state.by_ref().take(slots).map(State).collect();
                    update_span(&setting.rule, span, (param, grad), &state, &numbers)?;
                }
                finish(&setting.rule, &world, &Work { spans, param, grad, numbers })?;
            }
            Ok(())
        };
        guard("the optimizer's step", || no_grad(update))
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

/// The rates of a step for parameters with this setting.
fn rates_of(config: &OptimizerConfig, setting: &Setting, rates: StepRates) -> StepRates {
    let betas = match (&config.algorithm, &setting.rule) {
        // A schedule cycles Muon's momentum, not AdamW's betas beside it.
        (Algorithm::Muon(_), Algorithm::Adam(adam)) => adam.betas,
        _ => rates.betas,
    };
    StepRates { lr: rates.lr * setting.lr_factor, betas }
}

/// One call of a rule.
fn update_span(
    rule: &Algorithm,
    span: &Span,
    (param, grad): (&Tensor, &Tensor),
    state: &[State<'_>],
    numbers: &Numbers,
) -> Result<()> {
    let flat = |unit: &Tensor| unit.narrow(0, span.offset, span.len);
    let loaded = state.iter().map(State::load).collect();
    let grad = flat(grad).to_kind(Kind::Float);
    let mut part = Part { param: flat(param), grad, state: loaded };
    update(rule, &mut part, numbers)?;
    for (i, (state, loaded)) in state.iter().zip(&part.state).enumerate() {
        state.store(loaded, span.place, &[numbers.step, span.unit as u64, i as u64]);
    }
    Ok(())
}
