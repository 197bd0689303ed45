//! The optimizers over flat parameter units, and the norm that gradients are clipped by.
//!
//! A [`Plan`] says which parts of which units are updated alike (`plan.rs`), so that its memory is
//! known before it is taken. An [`Optimizer`] holds a plan's state (`state.rs`) and does the steps:
//! one call of a rule for all parts with the same settings. A rule is a function of parameters,
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
    config::{
        OptimizerConfig,
        optimizer::{Algorithm, StateDtype},
    },
    dist::{ProcessGroup, Shard},
    error::Result,
    tensor::{Device, Kind, Tensor, guard, no_grad},
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

/// An optimizer with its state.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<UpdateGroup>,
    params: Vec<PlanParam>,
    units: Vec<i64>,
    shard: Option<Shard>,
    step: u64,
}

/// A group of the plan with its state.
#[derive(Debug)]
struct UpdateGroup {
    setting: Setting,
    segments: Vec<Segment>,
    units: Vec<usize>,
}

/// A span with its state tensors.
#[derive(Debug)]
struct Segment {
    span: Span,
    state: Vec<State>,
}

impl Optimizer {
    /// A state of zeros.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(plan: Plan, device: Device) -> Result<Self> {
        let kind = state_kind(&plan.config);
        let with_state = |Group { setting, spans, units }: Group| {
            let names = state_names(&setting.rule);
            let segment = |span: Span| {
                let zeros = names.iter().map(|_| State::zeros(span.len, kind, device));
                Ok(Segment { state: zeros.collect::<Result<_>>()?, span })
            };
            let segments = spans.into_iter().map(segment).collect::<Result<_>>()?;
            Ok(UpdateGroup { setting, segments, units })
        };
        let Plan { config, groups, params, units, shard } = plan;
        let groups = groups.into_iter().map(with_state).collect::<Result<_>>()?;
        Ok(Self { config, groups, params, units, shard, step: 0 })
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps applied, which correct the averages' bias.
    pub fn applied_steps(&self) -> u64 {
        self.step
    }

    /// Goes on as after `step` steps; the state is restored through [`Optimizer::pieces`].
    pub fn set_applied_steps(&mut self, step: u64) {
        self.step = step;
    }

    /// What `rates` are for each group of parameters that are updated alike.
    pub fn group_rates(&self, rates: StepRates) -> Vec<GroupRates> {
        let of_group = |UpdateGroup { setting, .. }: &UpdateGroup| {
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

    /// Updates `params`, one float32 flat for each unit or slice of it, in place with `grads`
    /// divided by `grad_scale`, at these rates. Gradients in 16 bits are float32 for one part at a
    /// time, or in whole where the rule looks at whole parameters. They may be overwritten. Every
    /// rank of `group` calls it.
    ///
    /// # Errors
    /// libtorch refuses; another rank fails.
    pub fn step(
        &mut self,
        group: &ProcessGroup,
        params: &[&Tensor],
        grads: &[Tensor],
        rates: StepRates,
        grad_scale: f64,
    ) -> Result<()> {
        let step = self.step + 1;
        let is_float = |grad: &Tensor| grad.kind() == Kind::Float;
        let at_once = self.config.state_dtype == StateDtype::Fp32 && grads.iter().all(is_float);
        let whole: Vec<Tensor>;
        let grads = if self.config.algorithm.needs_whole_parameters() {
            let float = grads.iter().map(|grad| grad.f_to_kind(Kind::Float));
            whole = float.collect::<std::result::Result<_, _>>()?;
            &whole
        } else {
            grads
        };
        let (params_of, units, shard) = (&self.params, &self.units, self.shard);
        let world = World { group, shard, params: params_of, units };
        guard("the optimizer's step", || {
            no_grad(|| {
                for UpdateGroup { setting, segments, units } in &mut self.groups {
                    let StepRates { lr, betas } = rates_of(&self.config, setting, rates);
                    let weight_decay = setting.weight_decay;
                    let numbers = Numbers { step, lr, weight_decay, betas, grad_scale };
                    // State that is kept smaller is float32 for one part at a time.
                    let size = if at_once { segments.len().max(1) } else { 1 };
                    for chunk in segments.chunks_mut(size) {
                        step_segments(&setting.rule, chunk, (params, grads), &numbers)?;
                    }
                    let spans = segments.iter().map(|segment| &segment.span).collect();
                    let work = Work { spans, units, params, grads, numbers };
                    finish(&setting.rule, &world, &work)?;
                }
                Ok(())
            })
        })?;
        self.step = step;
        Ok(())
    }
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
fn step_segments(
    rule: &Algorithm,
    segments: &mut [Segment],
    (params, grads): (&[&Tensor], &[Tensor]),
    numbers: &Numbers,
) -> Result<()> {
    let mut parts = Vec::with_capacity(segments.len());
    for Segment { span, state } in &*segments {
        let flat = |unit: &Tensor| unit.narrow(0, span.offset, span.len);
        let state = state.iter().map(State::load).collect();
        let grad = flat(&grads[span.unit]).to_kind(Kind::Float);
        parts.push(Part { param: flat(params[span.unit]), grad, state });
    }
    update(rule, &mut parts, numbers)?;
    let states: Vec<Vec<Tensor>> = parts.into_iter().map(|part| part.state).collect();
    for (segment, loaded) in segments.iter_mut().zip(states) {
        for (i, (state, loaded)) in segment.state.iter_mut().zip(&loaded).enumerate() {
            let seed = [numbers.step, segment.span.unit as u64, i as u64];
            state.store(loaded, segment.span.place, &seed);
        }
    }
    Ok(())
}
