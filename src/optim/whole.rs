//! An optimizer's state by parameter, as a checkpoint has it, however the ranks divide it.

use super::{
    Optimizer,
    algorithm::rule_of,
    flat_slice::{FlatSlice, PlanParam},
    plan::{OptimizerPlan, UpdateGroup},
};
use crate::{
    dist::ProcessGroup,
    error::Result,
    tensor::{Tensor, no_grad},
};

/// One state tensor of one parameter.
#[derive(Debug)]
pub struct StateName {
    /// The state's name by PyTorch, a dot, and the parameter's: `exp_avg.transformer.wte.weight`.
    pub name: String,
    /// The name of the parameter.
    pub shape: Vec<i64>,
    /// Its unit, and which of the parameter's state tensors it is: the arguments of
    /// [`Optimizer::whole`].
    pub place: (usize, usize),
    /// Its first element in what [`Optimizer::whole`] returns.
    pub offset: i64,
}

/// This rank's part of the state tensor of a parameter.
#[derive(Debug)]
pub struct StatePiece {
    /// As [`StateName::name`].
    pub name: String,
    /// The first element that is here, of those of the parameter.
    pub start: i64,
    /// Flat, in the dtype in which it is kept. A copy into it changes the optimizer's state.
    pub tensor: Tensor,
}

fn name_of(param: &PlanParam, slot: usize) -> String {
    format!("{}.{}", param.states[slot], param.name)
}

impl OptimizerPlan {
    /// The state tensors of all parameters, the same on every rank.
    pub fn state_names(&self) -> Vec<StateName> {
        names_of(&self.params)
    }
}

/// The state tensors of these parameters.
fn names_of(params: &[PlanParam]) -> Vec<StateName> {
    let of_param = |param: &PlanParam| {
        let of_slot = |slot| StateName {
            name: name_of(param, slot),
            shape: param.shape.clone(),
            place: (param.unit, slot),
            offset: param.offset,
        };
        (0..param.states.len()).map(of_slot).collect::<Vec<_>>()
    };
    params.iter().flat_map(of_param).collect()
}

impl Optimizer {
    /// The state tensors of all parameters, the same on every rank.
    pub fn names(&self) -> Vec<StateName> {
        names_of(&self.params)
    }

    /// Elements of all state tensors together, on all ranks, without padding.
    pub fn state_numel(&self) -> u64 {
        self.names().iter().map(|state| state.shape.iter().product::<i64>() as u64).sum()
    }

    /// The state tensor `slot` of the parameters of a unit, laid out as the unit, from `state`, what
    /// this rank has of it. Every rank must call it.
    pub fn whole(
        &self,
        group: &ProcessGroup,
        (unit, slot): (usize, usize),
        state: &[Tensor],
    ) -> Result<Tensor> {
        let flat = Tensor::f_zeros([self.units[unit]], (self.state_kind(), group.device()))?;
        let own = self.shard.map_or_else(|| Ok(flat.shallow_clone()), |s| s.slice(&flat))?;
        no_grad(|| {
            for (slice, of_slice) in self.by_slice(unit, state) {
                if let Some(state) = of_slice.get(slot) {
                    own.f_narrow(0, slice.offset, slice.len)?.f_copy_(state)?;
                }
            }
            if self.shard.is_some() {
                group.gather_slices(&flat, u64::MAX)?;
            }
            Ok(flat)
        })
    }

    /// This rank's part of each state tensor of the parameters of a unit, as views of `state`.
    pub fn pieces(&self, unit: usize, state: &[Tensor]) -> Vec<StatePiece> {
        let mut pieces = Vec::new();
        for (slice, of_slice) in self.by_slice(unit, state) {
            for shard_param in &slice.params {
                let piece = |(slot, state): (usize, &Tensor)| StatePiece {
                    name: name_of(&self.params[shard_param.index], slot),
                    start: shard_param.start,
                    tensor: state.narrow(0, shard_param.offset, shard_param.len),
                };
                pieces.extend(of_slice.iter().enumerate().map(piece));
            }
        }
        pieces
    }

    /// The slices of a unit with their part of its state.
    fn by_slice<'a>(
        &'a self,
        unit: usize,
        mut state: &'a [Tensor],
    ) -> impl Iterator<Item = (&'a FlatSlice, &'a [Tensor])> {
        self.slices(unit).map(move |(UpdateGroup { settings, .. }, slice)| {
            let (own, rest) = state.split_at(rule_of(&settings.rule).state_names().len());
            state = rest;
            (slice, own)
        })
    }
}
