//! What every update rule is given: parts of units, and the numbers of a step.

use super::{
    adagrad, adam, lamb, lion, muon,
    plan::{PlanParam, Span, SpanParam},
    sgd,
};
use crate::{
    bridge::fused::{FusedPart, Scaling},
    config::optimizer::Algorithm,
    dist::{ProcessGroup, Shard},
    error::Result,
    tensor::{Kind, Tensor},
};

/// A span of a unit with its gradient and state, all flat, float32 and of one length.
pub(super) struct Part {
    pub(super) param: Tensor,
    /// May be overwritten.
    pub(super) grad: Tensor,
    /// In the order of [`super::plan::state_names`].
    pub(super) state: Vec<Tensor>,
}

/// The ranks, and the unit that is divided among them.
pub(super) struct World<'a> {
    pub(super) group: &'a ProcessGroup,
    pub(super) shard: Option<Shard>,
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
    pub(super) numbers: Numbers<'a>,
}

impl Work<'_> {
    /// Every parameter, or part of one, with its span.
    pub(super) fn spots(&self) -> impl Iterator<Item = (&Span, &SpanParam)> {
        self.spans.iter().flat_map(|span| span.params.iter().map(|spot| (*span, spot)))
    }
}

/// The numbers of one step for the parts of one group.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers<'a> {
    /// Counts from 1.
    pub(super) step: u64,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    /// The first is the momentum of rules that have one beta.
    pub(super) betas: (f64, f64),
    /// `None` takes the gradients as they are.
    pub(super) scaling: Option<&'a Scaling>,
}

impl Numbers<'_> {
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

/// Whether libtorch has the whole step of `rule` as one kernel.
pub(super) fn is_fused(rule: &Algorithm) -> bool {
    match rule {
        Algorithm::Adam(_) | Algorithm::Sgd(_) | Algorithm::Adagrad(_) => true,
        Algorithm::Lamb(_) | Algorithm::Lion(_) | Algorithm::Muon(_) => false,
    }
}

/// One step of `rule` on parts of one device; LAMB and Muon then need [`finish`].
///
/// Panics where libtorch refuses, to be called under [`crate::tensor::guard`].
pub(super) fn update(rule: &Algorithm, parts: &mut [Part], numbers: &Numbers<'_>) -> Result<()> {
    match rule {
        Algorithm::Adam(config) => return adam::step(config, parts, numbers),
        Algorithm::Sgd(config) => return sgd::step(config, parts, numbers),
        Algorithm::Adagrad(config) => return adagrad::step(config, parts, numbers),
        Algorithm::Lamb(config) => {
            parts.iter_mut().for_each(|part| lamb::step(config, part, numbers));
        }
        Algorithm::Lion(_) => parts.iter_mut().for_each(|part| lion::step(part, numbers)),
        Algorithm::Muon(config) => {
            parts.iter_mut().for_each(|part| muon::step(config, part, numbers));
        }
    }
    Ok(())
}

/// The second half of a step, for rules that look at whole parameters. Every rank calls it for the
/// same units and groups in the same order.
///
/// # Errors
/// Those of the collectives.
pub(super) fn finish(rule: &Algorithm, world: &World<'_>, work: &Work<'_>) -> Result<()> {
    match rule {
        Algorithm::Lamb(config) => lamb::finish(config, world, work),
        Algorithm::Muon(config) => muon::finish(config, world, work),
        Algorithm::Adam(_) | Algorithm::Sgd(_) | Algorithm::Adagrad(_) | Algorithm::Lion(_) => {
            Ok(())
        }
    }
}
