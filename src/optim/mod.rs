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

pub use clip::{clip_coefficient, norm};
pub use layout::{ParamLayout, UnitLayout};
pub use plan::Plan;

use self::{
    plan::{Group, Setting, Span, state_kind, state_names},
    rule::{Numbers, Part, update},
    state::State,
};
use crate::{
    config::{
        OptimizerConfig,
        optimizer::{Algorithm, StateDtype},
    },
    error::Result,
    tensor::{Device, Tensor, guard, no_grad},
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
    groups: Vec<(Setting, Vec<Segment>)>,
    step: u64,
}

/// A span with its state tensors.
#[derive(Debug)]
struct Segment {
    span: Span,
    state: Vec<State>,
}

/// The state of one parameter, as a view.
#[derive(Debug)]
pub struct NamedState {
    /// The state's name by PyTorch, a dot, and the parameter's: `exp_avg.transformer.wte.weight`.
    pub name: String,
    /// Of the parameter's shape, in the dtype in which it is kept.
    pub tensor: Tensor,
}

impl Optimizer {
    /// A state of zeros.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(plan: Plan, device: Device) -> Result<Self> {
        let kind = state_kind(&plan.config);
        let segments = |Group { setting, spans }: Group| {
            let names = state_names(&setting.rule);
            let segment = |span: Span| {
                let zeros = names.iter().map(|_| State::zeros(span.len, kind, device));
                Ok(Segment { state: zeros.collect::<Result<_>>()?, span })
            };
            Ok((setting, spans.into_iter().map(segment).collect::<Result<_>>()?))
        };
        let groups = plan.groups.into_iter().map(segments).collect::<Result<_>>()?;
        Ok(Self { config: plan.config, groups, step: 0 })
    }

    /// The settings.
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Steps applied, which correct the averages' bias.
    pub fn applied_steps(&self) -> u64 {
        self.step
    }

    /// Goes on as after `step` steps; the state is restored through [`Optimizer::named_state`].
    pub fn set_applied_steps(&mut self, step: u64) {
        self.step = step;
    }

    /// The state of every parameter. What is copied into a view is the optimizer's.
    pub fn named_state(&self) -> Vec<NamedState> {
        let mut named = Vec::new();
        for (setting, segments) in &self.groups {
            let names = state_names(&setting.rule);
            for Segment { span, state } in segments {
                for (kind, state) in names.iter().zip(state) {
                    named.extend(span.params.iter().map(|param| {
                        let flat = state.stored().narrow(0, param.offset, param.numel());
                        let tensor = flat.view(&param.shape[..]);
                        NamedState { name: format!("{kind}.{}", param.name), tensor }
                    }));
                }
            }
        }
        named
    }

    /// What `rates` are for each group of parameters that are updated alike.
    pub fn group_rates(&self, rates: StepRates) -> Vec<GroupRates> {
        let of_group = |(setting, _): &(Setting, Vec<Segment>)| {
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

    /// Elements of the state's tensors, padding included.
    pub fn state_numel(&self) -> u64 {
        let segments = self.groups.iter().flat_map(|(_, segments)| segments);
        segments.map(|s| s.state.len() as u64 * s.span.len as u64).sum()
    }

    /// Updates `params`, one float32 flat for each unit, in place with `grads` divided by
    /// `grad_scale`, at these rates. The gradients may be overwritten.
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
        let step = self.step + 1;
        let at_once = self.config.state_dtype == StateDtype::Fp32;
        let mut index = 0;
        guard("the optimizer's step", || {
            no_grad(|| {
                for (setting, segments) in &mut self.groups {
                    let StepRates { lr, betas } = rates_of(&self.config, setting, rates);
                    let weight_decay = setting.weight_decay;
                    let numbers = Numbers { step, lr, weight_decay, betas, grad_scale };
                    // State that is kept smaller is float32 for one part at a time.
                    let size = if at_once { segments.len().max(1) } else { 1 };
                    for chunk in segments.chunks_mut(size) {
                        step_segments(&setting.rule, chunk, (params, grads), &numbers, &mut index)?;
                    }
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

/// One call of a rule; `index` counts the segments, for the seeds of their rounding.
fn step_segments(
    rule: &Algorithm,
    segments: &mut [Segment],
    (params, grads): (&[&Tensor], &[Tensor]),
    numbers: &Numbers,
    index: &mut u64,
) -> Result<()> {
    let mut parts = Vec::with_capacity(segments.len());
    for Segment { span, state } in &*segments {
        let flat = |unit: &Tensor| unit.narrow(0, span.offset, span.len);
        let state = state.iter().map(State::load).collect();
        parts.push(Part {
            param: flat(params[span.unit]),
            grad: flat(&grads[span.unit]),
            state,
            span,
        });
    }
    update(rule, &mut parts, numbers)?;
    let states: Vec<Vec<Tensor>> = parts.into_iter().map(|part| part.state).collect();
    for (segment, loaded) in segments.iter_mut().zip(states) {
        for (i, (state, loaded)) in segment.state.iter_mut().zip(&loaded).enumerate() {
            state.store(loaded, &[numbers.step, *index, i as u64]);
        }
        *index += 1;
    }
    Ok(())
}
