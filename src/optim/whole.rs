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
    quantize::{MOMENT_BLOCK, moment_scales},
    tensor::{Kind, Tensor, no_grad},
};

/// How a state tensor is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateForm {
    /// A floating-point number for each element.
    Plain,
    /// A code of 8 bits for each element.
    Codes,
    /// A float32 scale for each block of codes.
    Scales,
}

/// One state tensor of one parameter.
#[derive(Debug)]
pub struct StateName {
    /// The state's name by PyTorch, a dot, and the parameter's: `exp_avg.transformer.wte.weight`. Scales of
    /// codes are `exp_avg_absmax.transformer.wte.weight`.
    pub name: String,
    /// The parameter's shape; that of scales is their number.
    pub shape: Vec<i64>,
    /// How it is kept.
    pub form: StateForm,
    /// Its unit, and which of the parameter's state tensors it is: the arguments of
    /// [`Optimizer::whole`].
    pub place: (usize, usize),
    /// The first element of the parameter in its unit, as in what [`Optimizer::whole`] returns; scales
    /// begin there at their [`StateName::first_scale`].
    pub offset: i64,
}

impl StateName {
    /// The number of the first scale among those of the unit.
    pub fn first_scale(&self) -> i64 {
        self.offset / MOMENT_BLOCK
    }
}

/// This rank's part of the state tensor of a parameter.
#[derive(Debug)]
pub struct StatePiece {
    /// As [`StateName::name`].
    pub name: String,
    /// The first element that is here, of those of the parameter; of scales the first of these.
    pub start: i64,
    /// How it is kept.
    pub form: StateForm,
    /// Flat, in the dtype in which it is kept. A copy into it changes the optimizer's state.
    pub tensor: Tensor,
}

fn name_of(param: &PlanParam, slot: usize, form: StateForm) -> String {
    let suffix = if form == StateForm::Scales { "_absmax" } else { "" };
    format!("{}{suffix}.{}", param.states[slot], param.name)
}

/// The forms of the state of a parameter or a slice.
fn forms(is_blockwise: bool) -> &'static [StateForm] {
    if is_blockwise { &[StateForm::Codes, StateForm::Scales] } else { &[StateForm::Plain] }
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
        let numel = param.shape.iter().product();
        let of_slot = |(slot, form)| StateName {
            name: name_of(param, slot, form),
            shape: match form {
                StateForm::Scales => vec![moment_scales(numel)],
                _ => param.shape.clone(),
            },
            form,
            place: (param.unit, slot),
            offset: param.offset,
        };
        let slots = 0..param.states.len();
        let all = forms(param.is_blockwise).iter();
        all.flat_map(|&form| slots.clone().map(move |slot| (slot, form)))
            .map(of_slot)
            .collect::<Vec<_>>()
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

    /// The state tensor `slot` of the parameters of a unit whose state has this form, laid out as the
    /// unit, scales as its blocks, from `state`, what this rank has of it. Every rank must call it.
    pub fn whole(
        &self,
        group: &ProcessGroup,
        (unit, slot, form): (usize, usize, StateForm),
        state: &[Tensor],
    ) -> Result<Tensor> {
        let (kind, block) = match form {
            StateForm::Plain => (self.state_kind(), 1),
            StateForm::Codes => (Kind::Uint8, 1),
            StateForm::Scales => (Kind::Float, MOMENT_BLOCK),
        };
        let blocks = (self.units[unit] + block - 1) / block;
        let flat = Tensor::f_zeros([blocks], (kind, group.device()))?;
        let own = self.shard.map_or_else(|| Ok(flat.shallow_clone()), |s| s.slice(&flat))?;
        no_grad(|| {
            for (slice, of_slice) in self.by_slice(unit, state) {
                if let Some(state) = of_form(slice, of_slice, form).get(slot) {
                    let len = state.numel() as i64;
                    own.f_narrow(0, slice.offset / block, len)?.f_copy_(state)?;
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
                for &form in forms(slice.is_blockwise) {
                    let piece = |(slot, state): (usize, &Tensor)| {
                        let name = name_of(&self.params[shard_param.index], slot, form);
                        let (at, start, len) = match form {
                            StateForm::Scales => (
                                shard_param.offset / MOMENT_BLOCK,
                                shard_param.start / MOMENT_BLOCK,
                                moment_scales(shard_param.len),
                            ),
                            _ => (shard_param.offset, shard_param.start, shard_param.len),
                        };
                        StatePiece { name, start, form, tensor: state.narrow(0, at, len) }
                    };
                    pieces.extend(of_form(slice, of_slice, form).iter().enumerate().map(piece));
                }
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
            let slots = rule_of(&settings.rule).state_names().len();
            let (own, rest) = state.split_at(slots * forms(slice.is_blockwise).len());
            state = rest;
            (slice, own)
        })
    }
}

/// The state tensors of a slice that have this form; none where its state has another.
fn of_form<'a>(slice: &FlatSlice, state: &'a [Tensor], form: StateForm) -> &'a [Tensor] {
    let (codes, scales) = state.split_at(state.len() / 2);
    match (slice.is_blockwise, form) {
        (false, StateForm::Plain) => state,
        (true, StateForm::Codes) => codes,
        (true, StateForm::Scales) => scales,
        _ => &[],
    }
}
