//! The trait of an update rule, and its inputs: slices of units, and the hyperparameters of a
//! step.

use super::flat_slice::{FlatSlice, PlanParam, ShardParamInfo};
use crate::{
    bridge::fused::{FusedTensors, Scaling},
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
    fn step(&self, parts: &mut [SliceTensors], hyper: &Hyperparameters<'_>) -> Result<()>;

    /// The second half of a step, for rules that look at whole parameters. Every rank calls it for the
    /// same units and groups in the same order.
    fn finish(&self, _world: &UnitContext<'_>, _work: &GroupUpdate<'_>) -> Result<()> {
        Ok(())
    }
}

/// A slice of a unit with its gradient and state, all flat, float32 and of one length.
pub(super) struct SliceTensors {
    pub(super) param: Tensor,
    /// May be overwritten.
    pub(super) grad: Tensor,
    /// In the order of [`Rule::state_names`].
    pub(super) state: Vec<Tensor>,
}

/// The ranks, and the unit that is divided among them.
pub(super) struct UnitContext<'a> {
    pub(super) group: &'a ProcessGroup,
    pub(super) shard: Option<ShardSpec>,
    pub(super) params: &'a [PlanParam],
    /// The unit, and its elements on all ranks.
    pub(super) unit: usize,
    pub(super) unit_numel: i64,
}

/// The second half of an update of one group in a unit, for rules that look at whole parameters.
pub(super) struct GroupUpdate<'a> {
    pub(super) slices: Vec<&'a FlatSlice>,
    /// This rank's slice of the unit.
    pub(super) param: &'a Tensor,
    /// Laid out alike, now with what the first half of a rule left there.
    pub(super) grad: &'a Tensor,
    pub(super) hyperparameters: Hyperparameters<'a>,
}

impl GroupUpdate<'_> {
    /// Every parameter, or part of one, with its slice.
    pub(super) fn shard_params(&self) -> impl Iterator<Item = (&FlatSlice, &ShardParamInfo)> {
        self.slices
            .iter()
            .flat_map(|slice| slice.params.iter().map(|shard_param| (*slice, shard_param)))
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
    /// The divisors that correct the bias of averages that start at zero.
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

impl SliceTensors {
    pub(super) fn fused(&self) -> FusedTensors<'_> {
        FusedTensors { param: &self.param, grad: &self.grad, state: &self.state }
    }
}

/// A float32 scalar beside `like`.
pub(super) fn scalar(value: f64, like: &Tensor) -> Tensor {
    Tensor::full([0i64; 0], value, (Kind::Float, like.device()))
}
