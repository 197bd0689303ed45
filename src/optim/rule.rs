//! The trait of an update rule, and what a rule is given: parts of units, and the hyperparameters of a
//! step.

use super::span::{PlanParam, Span, SpanParam};
use crate::{
    bridge::fused::{FusedPart, Scaling},
    dist::{ProcessGroup, ShardSpec},
    error::Result,
    tensor::{Kind, Tensor},
};

/// How parameters are updated.
pub(super) trait Rule {
    /// The state tensors of a parameter, by PyTorch's names.
    fn state_names(&self) -> &'static [&'static str];

    /// The rule's decays of averages, of the two that a schedule may set.
    fn betas(&self, betas: (f64, f64)) -> Vec<f64>;

    /// Whether libtorch has the whole step as one kernel.
    fn is_fused(&self) -> bool {
        false
    }

    /// Whether an update depends on more of a parameter than the element that it changes.
    fn needs_whole_parameters(&self) -> bool {
        false
    }

    /// One step on parts of one device.
    ///
    /// Panics where libtorch refuses, to be called under [`crate::tensor::guard`].
    fn step(&self, parts: &mut [Part], hyperparameters: &Hyperparameters<'_>) -> Result<()>;

    /// The second half of a step, for rules that look at whole parameters. Every rank calls it for the
    /// same units and groups in the same order.
    fn finish(&self, _world: &World<'_>, _work: &Work<'_>) -> Result<()> {
        Ok(())
    }
}

/// A span of a unit with its gradient and state, all flat, float32 and of one length.
pub(super) struct Part {
    pub(super) param: Tensor,
    /// May be overwritten.
    pub(super) grad: Tensor,
    /// In the order of [`Rule::state_names`].
    pub(super) state: Vec<Tensor>,
}

/// The ranks, and the unit that is divided among them.
pub(super) struct World<'a> {
    pub(super) group: &'a ProcessGroup,
    pub(super) shard: Option<ShardSpec>,
    pub(super) params: &'a [PlanParam],
    /// The unit, and its elements on all ranks.
    pub(super) unit: usize,
    pub(super) unit_numel: i64,
}

/// What the rules that look at whole parameters have left to do for one group in a unit.
pub(super) struct Work<'a> {
    pub(super) spans: Vec<&'a Span>,
    /// What this rank updates of the unit.
    pub(super) param: &'a Tensor,
    /// Laid out alike, now with what the first half of a rule left there.
    pub(super) grad: &'a Tensor,
    pub(super) hyperparameters: Hyperparameters<'a>,
}

impl Work<'_> {
    /// Every parameter, or part of one, with its span.
    pub(super) fn spots(&self) -> impl Iterator<Item = (&Span, &SpanParam)> {
        self.spans.iter().flat_map(|span| span.params.iter().map(|spot| (*span, spot)))
    }
}

/// The hyperparameters of one step for the parts of one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hyperparameters<'a> {
    /// Counts from 1.
    pub(super) step: u64,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    /// The first is the momentum of rules that have one beta.
    pub(super) betas: (f64, f64),
    /// `None` takes the gradients as they are.
    pub(super) scaling: Option<&'a Scaling>,
}

impl Hyperparameters<'_> {
    /// What the averages of a start at zero are to be divided by.
    pub(super) fn bias_corrections(&self) -> (f64, f64) {
        let correction = |beta: f64| 1.0 - beta.powf(self.step as f64);
        (correction(self.betas.0), correction(self.betas.1))
    }

    /// Divides a gradient in place.
    pub(super) fn unscale(&self, grad: &mut Tensor) {
        if let Some(scaling) = self.scaling {
            let _ = grad.g_div_(&scaling.grad_scale);
        }
    }
}

impl Part {
    pub(super) fn fused(&self) -> FusedPart<'_> {
        FusedPart { param: &self.param, grad: &self.grad, state: &self.state }
    }
}

/// A float32 scalar beside `like`.
pub(super) fn scalar(value: f64, like: &Tensor) -> Tensor {
    Tensor::full([0i64; 0], value, (Kind::Float, like.device()))
}
