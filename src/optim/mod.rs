//! The optimizers over flat parameter units, and the norm that gradients are clipped by.
//!
//! A [`OptimizerPlan`] says which parts of which units are updated alike (`plan.rs`), by the groups of a
//! config (`group_settings.rs`, `overrides.rs`), so that its memory is known before it is taken. An
//! [`Optimizer`] does the steps of a plan, unit by unit, so that the state of a unit (`state.rs`) has to be at
//! hand only then. A rule is a function of parameters, gradients, state and the step's hyperparameters
//! (`rule.rs`), one file each: `adam.rs`, `sgd.rs` and `adagrad.rs` are libtorch's fused kernels (over state in
//! 8 bits one of our own, `blockwise.rs`), `lion.rs` is arithmetic on whole parts, `lamb.rs` and `muon.rs` also
//! look at each parameter by itself.

mod adagrad;
mod adam;
mod algorithm;
mod blockwise;
mod clip;
mod flat_slice;
mod group_settings;
mod lamb;
mod layout;
mod lion;
mod muon;
#[cfg(test)]
mod oracle;
mod overrides;
mod plan;
mod rule;
mod sgd;
mod state;
mod whole;

pub use crate::bridge::fused::Scaling;
pub use clip::{clip_divisor, squared_norm, squares};
pub use layout::{ParamLayout, UnitLayout};
pub use overrides::names_nothing;
pub use plan::OptimizerPlan;
pub use whole::{StateForm, StateName, StatePiece};

use self::{
    algorithm::rule_of,
    blockwise::{BlockwiseTensors, CodeTables},
    flat_slice::{FlatSlice, PlanParam},
    group_settings::GroupSettings,
    plan::{UpdateGroup, state_kind, state_tensors},
    rule::{GroupUpdate, Hyperparameters, SliceTensors, UnitContext},
    state::StoredTensor,
};
use crate::{
    config::{OptimizerConfig, optimizer::Algorithm},
    dist::{ProcessGroup, ShardSpec},
    error::Result,
    tensor::{Kind, Tensor, guard, no_grad},
};

/// The rates of one step, which a schedule may set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepRates {
    /// The learning rate.
    pub lr: f64,
    /// The decay of the averages of the gradient and of its square; where there is one average,
    /// the first is its momentum, see [`OptimizerConfig::betas`].
    pub betas: (f64, f64),
}

/// The rates of one step for one group of parameters.
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
    groups: Vec<UpdateGroup>,
    params: Vec<PlanParam>,
    units: Vec<i64>,
    shard: Option<ShardSpec>,
    step: u64,
    codes: CodeTables,
}

/// The tensors that a step changes, of one unit or of this rank's slice of it.
#[derive(Debug, Clone, Copy)]
pub struct UnitTensors<'a> {
    /// The weights, flat: float32, or bfloat16 that is rounded stochastically.
    pub param: &'a Tensor,
    /// Their gradients, laid out alike. They may be overwritten.
    pub grad: &'a Tensor,
    /// The state, as [`Optimizer::state_layout`] has it.
    pub state: &'a [Tensor],
}

impl Optimizer {
    /// An optimizer before its first step.
    pub fn new(plan: OptimizerPlan) -> Self {
        let OptimizerPlan { config, groups, params, units, shard } = plan;
        Self { config, groups, params, units, shard, step: 0, codes: CodeTables::default() }
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

    /// The dtype of state tensors that are not in 8 bits.
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

    /// The format and the elements of each state tensor of a unit: those of the first group's first
    /// slice, of its next slice, of the next group. All are flat, and zeros before the first step.
    pub fn state_layout(&self, unit: usize) -> Vec<(Kind, i64)> {
        let slices = self.slices(unit);
        slices.flat_map(|(group, slice)| state_tensors(&self.config, group, slice)).collect()
    }

    /// The slices of a unit, in the order of [`Optimizer::state_layout`].
    fn slices(&self, unit: usize) -> impl Iterator<Item = (&UpdateGroup, &FlatSlice)> {
        let of_group = move |group| slices_of(group, unit).map(move |slice| (group, slice));
        self.groups.iter().flat_map(of_group)
    }

    /// The `rates` of each group of parameters that are updated alike.
    pub fn group_rates(&self, rates: StepRates) -> Vec<GroupRates> {
        let of_group = |UpdateGroup { settings, .. }: &UpdateGroup| {
            let StepRates { lr, betas } = rates_of(&self.config, settings, rates);
            GroupRates { lr, betas: rule_of(&settings.rule).betas(betas) }
        };
        self.groups.iter().map(of_group).collect()
    }

    /// Whether each step is libtorch's fused kernels alone, which read from the device whether they
    /// may change anything ([`Scaling::found_inf`]).
    pub fn is_fused(&self) -> bool {
        // To write the codes of what did not change would change it.
        let is_exact = self.config.blockwise.is_none();
        is_exact && self.groups.iter().all(|group| rule_of(&group.settings.rule).is_fused())
    }

    /// Updates units in place at these rates, with their gradients scaled. A step does so for every
    /// unit once, together or in parts, in the same order on every rank of `group`, and ends with
    /// [`Optimizer::end_step`]. Gradients, weights and state in 16 bits are float32 for one slice at a time,
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
                let UpdateGroup { settings, .. } = of_group;
                let StepRates { lr, betas } = rates_of(&self.config, settings, rates);
                let weight_decay = settings.weight_decay;
                let hyperparameters = Hyperparameters { step, lr, weight_decay, betas, scaling };
                update_spans(of_group, &mut updates, (&hyperparameters, &self.codes))?;
                for UnitUpdate { unit, param, grad, .. } in &updates {
                    if of_group.units.contains(unit) {
                        let slices = slices_of(of_group, *unit).collect();
                        let update = GroupUpdate { slices, param, grad, hyperparameters };
                        rule_of(&settings.rule).finish(&self.context(group, *unit), &update)?;
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

    fn context<'a>(&'a self, group: &'a ProcessGroup, unit: usize) -> UnitContext<'a> {
        let unit_numel = self.units[unit];
        UnitContext { group, shard: self.shard, params: &self.params, unit, unit_numel }
    }

    /// Ends a step in which every unit was updated.
    pub fn end_step(&mut self) {
        self.step += 1;
    }
}

/// The slices that a group has of a unit.
fn slices_of(group: &UpdateGroup, unit: usize) -> impl Iterator<Item = &FlatSlice> {
    group.slices.iter().filter(move |slice| slice.unit == unit)
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

/// One step on the slices of a group: all in one call, or one after the other where parts have to be
/// made float32 for it.
fn update_spans(
    group: &UpdateGroup,
    updates: &mut [UnitUpdate<'_>],
    (hyperparameters, codes): (&Hyperparameters<'_>, &CodeTables),
) -> Result<()> {
    let rule = rule_of(&group.settings.rule);
    let slots = rule.state_names().len();
    let mut parts = Vec::new();
    for UnitUpdate { unit, param, grad, state } in updates {
        for slice in slices_of(group, *unit) {
            let flat = |unit: &Tensor| unit.narrow(0, slice.offset, slice.len);
            if slice.is_blockwise {
                let state = state.by_ref().take(2 * slots).collect();
                let tensors = BlockwiseTensors { param: flat(param), grad: flat(grad), state };
                tensors.step(&group.settings.rule, slice, (hyperparameters, codes))?;
                continue;
            }
            let state: Vec<_> = state.by_ref().take(slots).map(StoredTensor).collect();
            let weights = flat(param);
            let weights = StoredTensor(&weights);
            let stored = || state.iter().chain([&weights]);
            let is_float = grad.kind() == Kind::Float && stored().all(StoredTensor::is_float);
            let mut part = SliceTensors {
                param: weights.load(),
                grad: flat(grad).to_kind(Kind::Float),
                state: state.iter().map(StoredTensor::load).collect(),
            };
            if is_float {
                parts.push(part);
                continue;
            }
            rule.step(std::slice::from_mut(&mut part), hyperparameters)?;
            let loaded = part.state.iter().chain([&part.param]);
            for (i, (stored, loaded)) in stored().zip(loaded).enumerate() {
                stored.store(
                    loaded,
                    slice.unit_offset,
                    &[hyperparameters.step, slice.number as u64, i as u64],
                );
            }
        }
    }
    rule.step(&mut parts, hyperparameters)
}
