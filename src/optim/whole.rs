//! An optimizer's state by parameter, as a checkpoint has it, however the ranks divide it.

use super::{Optimizer, plan::PlanParam, state::State};
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
    /// That of the parameter.
    pub shape: Vec<i64>,
    /// Its unit, and which of the parameter's state tensors it is: the arguments of
    /// [`Optimizer::whole`].
    pub place: (usize, usize),
    /// Its first element in what [`Optimizer::whole`] returns.
    pub offset: i64,
}

/// What this rank has of the state tensor of a parameter.
#[derive(Debug)]
pub struct StatePiece {
    /// As [`StateName::name`].
    pub name: String,
    /// The first element that is here, of those of the parameter.
    pub start: i64,
    /// Flat, in the dtype in which it is kept. What is copied into it is the optimizer's.
    pub tensor: Tensor,
}

fn name_of(param: &PlanParam, slot: usize) -> String {
    format!("{}.{}", param.states[slot], param.name)
}

impl Optimizer {
    /// The state tensors of all parameters, the same on every rank.
    pub fn names(&self) -> Vec<StateName> {
        let of_param = |param: &PlanParam| {
            let of_slot = |slot| StateName {
                name: name_of(param, slot),
                shape: param.shape.clone(),
                place: (param.unit, slot),
                offset: param.offset,
            };
            (0..param.states.len()).map(of_slot).collect::<Vec<_>>()
        };
        self.params.iter().flat_map(of_param).collect()
    }

    /// Elements of all state tensors together, on all ranks, without padding.
    pub fn state_numel(&self) -> u64 {
        self.names().iter().map(|state| state.shape.iter().product::<i64>() as u64).sum()
    }

    /// The state tensor `slot` of the parameters of a unit, laid out as the unit. Every rank must
    /// call it.
    ///
    /// # Errors
    /// Memory is exhausted; another rank fails.
    pub fn whole(&self, group: &ProcessGroup, (unit, slot): (usize, usize)) -> Result<Tensor> {
        let kind = super::state_kind(&self.config);
        let flat = Tensor::f_zeros([self.units[unit]], (kind, group.device()))?;
        let own = self.shard.map_or_else(|| Ok(flat.shallow_clone()), |s| s.slice(&flat))?;
        no_grad(|| {
            for segment in self.groups.iter().flat_map(|group| &group.segments) {
                if let Some(state) = segment.state.get(slot).filter(|_| segment.span.unit == unit) {
                    let part = own.f_narrow(0, segment.span.offset, segment.span.len);
                    part?.f_copy_(state.stored())?;
                }
            }
            if self.shard.is_some() {
                group.gather_slices(&flat, u64::MAX)?;
            }
            Ok(flat)
        })
    }

    /// What this rank has of each state tensor.
    pub fn pieces(&self) -> Vec<StatePiece> {
        let mut pieces = Vec::new();
        for segment in self.groups.iter().flat_map(|group| &group.segments) {
            for spot in &segment.span.params {
                let piece = |(slot, state): (usize, &State)| StatePiece {
                    name: name_of(&self.params[spot.index], slot),
                    start: spot.start,
                    tensor: state.stored().narrow(0, spot.offset, spot.len),
                };
                pieces.extend(segment.state.iter().enumerate().map(piece));
            }
        }
        pieces
    }
}
