//! Decides whether a step is applied, skipped, or ends the training.
//!
//! A gradient that is not finite skips its step, whatever the precision. A fault that cannot pass
//! stops the training: a loss that is not finite, an overflow at the lowest loss scale, and
//! without a dynamic scale too many skipped steps in a row, which DeepSpeed would let go on for ever.

use std::collections::VecDeque;

use super::{loss_scaler::LossScaler, unit_states::UnitStates};
use crate::{
    config::LossScale,
    data::{BatchRows, write_rows},
    dist::{ProcessGroup, ReduceOp, ShardSpec},
    error::{Code, Error, Result},
    fs::Place,
    model::{FlatUnit, Model, ParamSpec},
    tensor::Tensor,
};

/// Skipped steps in a row that stop a training whose loss scale does not change.
const MOST_SKIPPED: u32 = 16;
/// How many of the last losses an error shows.
const LOSSES_SHOWN: usize = 8;

/// How the steps have gone.
pub(super) struct OverflowCheck {
    pub(super) scaler: LossScaler,
    pub(super) skipped_steps: u64,
    skipped_in_a_row: u32,
    losses: VecDeque<f64>,
    /// Where the rows of a bad batch are saved, and the name's end that tells ranks apart.
    bad_batches: Option<(Place, String)>,
}

/// The decision about a step.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StepDecision {
    Apply,
    Skip,
    /// Training ends, for this reason.
    Stop(String),
}

impl OverflowCheck {
    pub(super) fn new(loss_scale: LossScale) -> Self {
        Self {
            scaler: LossScaler::new(loss_scale),
            skipped_steps: 0,
            skipped_in_a_row: 0,
            losses: VecDeque::new(),
            bad_batches: None,
        }
    }

    /// Forgets what led to here; the scale and the count are restored by their owner.
    pub(super) fn forget(&mut self) {
        self.skipped_in_a_row = 0;
        self.losses.clear();
    }

    pub(super) fn save_bad_batches(&mut self, dir: Place, suffix: String) {
        self.bad_batches = Some((dir, suffix));
    }

    /// Judges a step by its loss and the norm of its gradient, which all ranks have alike, and
    /// brings the loss scale up to date.
    pub(super) fn judge(&mut self, loss: f64, grad_norm: f64) -> StepDecision {
        if !loss.is_finite() {
            return StepDecision::Stop(format!("the loss is {loss}"));
        }
        if self.losses.len() == LOSSES_SHOWN {
            self.losses.pop_front();
        }
        self.losses.push_back(loss);
        let overflow = !grad_norm.is_finite();
        let scale = self.scaler.scale();
        if self.scaler.update(overflow).is_err() {
            return StepDecision::Stop(format!(
                "a gradient is not finite, with the loss scale at its minimum, {scale},"
            ));
        }
        if !overflow {
            self.skipped_in_a_row = 0;
            return StepDecision::Apply;
        }
        self.skipped_steps += 1;
        self.skipped_in_a_row += 1;
        if !self.scaler.is_dynamic() && self.skipped_in_a_row == MOST_SKIPPED {
            let times = "a gradient is not finite for the";
            return StepDecision::Stop(format!("{times} {MOST_SKIPPED}th time in a row"));
        }
        StepDecision::Skip
    }

    /// The error of a stop at `step`, with all that helps to find the cause: the parameter, the
    /// rows, the losses before. Saves the rows where [`OverflowCheck::save_bad_batches`] said.
    pub(super) fn stop(
        &self,
        reason: &str,
        step: u64,
        culprit: Option<String>,
        rows: &[BatchRows],
    ) -> Error {
        let e = Error::new(Code::Diverged, format!("{reason} at step {step}"));
        let losses: Vec<_> = self.losses.iter().map(|loss| format!("{loss:.4}")).collect();
        let losses =
            (!losses.is_empty()).then(|| format!("the last losses: {}", losses.join(", ")));
        let hints = [culprit, losses, self.save_rows(step, rows)];
        let e = hints.into_iter().flatten().fold(e, Error::hint);
        e.hint("parameters are as before the step; try a lower lr, a longer warm-up or gradient_clipping: 1.0")
    }

    /// Describes the rows, saved or not: a failure to save them must not hide the reason to.
    fn save_rows(&self, step: u64, rows: &[BatchRows]) -> Option<String> {
        if rows.is_empty() {
            return None;
        }
        let places = rows.iter().map(BatchRows::place).collect::<Vec<_>>().join("; ");
        let Some((dir, suffix)) = &self.bad_batches else {
            return Some(format!("the batch: {places}"));
        };
        let place = dir.join(format!("bad-batch-step-{step}{suffix}.arrow"));
        Some(match write_rows(&place, rows) {
            Ok(()) => format!("the batch: {places}, saved as {}", place.display()),
            Err(e) => format!("the batch: {places}, which could not be saved: {}", e.message()),
        })
    }
}

/// Names the first thing that is not finite on any rank: a parameter in the order of the forward
/// pass, or else a gradient in the order of the backward pass. `grads` are laid out as the masters.
/// Every rank must call it.
pub(super) fn first_not_finite(
    model: &Model,
    group: &ProcessGroup,
    shard: ShardSpec,
    states: &UnitStates,
    grads: &[Tensor],
) -> Result<Option<String>> {
    let trained = &model.all_units()[..model.trainable_count()];
    let names: Vec<_> = trained.iter().flat_map(FlatUnit::names).collect();
    let (mut params, mut gradients) = (Vec::new(), Vec::new());
    for (number, unit) in trained.iter().enumerate() {
        let Some(i) = model.local_unit(number) else {
            // Another stage looks.
            params.extend(unit.specs().iter().map(|_| 0));
            gradients.extend(unit.specs().iter().map(|_| 0));
            continue;
        };
        let unit = &model.units()[i];
        params.extend(states.look(i, |kept| flags(unit, shard, &kept.master))?);
        gradients.extend(flags(unit, shard, &grads[i])?);
    }
    if let Some(i) = on_any_rank(group, &params)?.first() {
        return Ok(Some(format!("the parameter {} itself is not finite", names[*i])));
    }
    let bad = on_any_rank(group, &gradients)?;
    let all = names.len();
    Ok(bad.last().map(|&i| {
        let of = format!("{} of {all} parameters have such a gradient", bad.len());
        format!("the first, going backward, is the gradient of {}; {of}", names[i])
    }))
}

/// For each parameter of a unit 1 where its part of `flat`, the unit or a slice, is not finite.
fn flags(unit: &FlatUnit, shard: ShardSpec, flat: &Tensor) -> Result<Vec<i64>> {
    let flag = |(spec, &offset): (&ParamSpec, &i64)| match shard.overlap(
        unit.padded_numel(),
        offset,
        offset + spec.numel(),
    ) {
        Some((from, to, at)) => Ok(i64::from(!is_finite(&flat.f_narrow(0, at, to - from)?)?)),
        None => Ok(0),
    };
    unit.specs().iter().zip(unit.offsets()).map(flag).collect()
}

/// The numbers of the flags that are set on some rank.
fn on_any_rank(group: &ProcessGroup, flags: &[i64]) -> Result<Vec<usize>> {
    let flags = Tensor::f_from_slice(flags)?.f_to_device(group.device())?;
    group.all_reduce(&flags, ReduceOp::Max)?;
    let flags = Vec::<i64>::try_from(&flags)?;
    Ok((0..).zip(flags).filter(|&(_, flag)| flag != 0).map(|(i, _)| i).collect())
}

fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok(tensor.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_that_is_not_finite_skips_until_it_happens_too_often() {
        let mut overflow_check = OverflowCheck::new(LossScale::None);
        assert_eq!(overflow_check.judge(3.0, 1.0), StepDecision::Apply);
        for _ in 1..MOST_SKIPPED {
            assert_eq!(overflow_check.judge(3.0, f64::INFINITY), StepDecision::Skip);
        }
        assert_eq!(overflow_check.judge(3.0, 1.0), StepDecision::Apply);
        for _ in 1..MOST_SKIPPED {
            assert_eq!(overflow_check.judge(3.0, f64::NAN), StepDecision::Skip);
        }
        let StepDecision::Stop(reason) = overflow_check.judge(2.5, f64::NAN) else {
            panic!("it goes on")
        };
        assert_eq!(reason, "a gradient is not finite for the 16th time in a row");
        assert_eq!(overflow_check.skipped_steps, 31);
        let e = overflow_check.stop(&reason, 33, None, &[]);
        assert!(e.hints()[0].ends_with("3.0000, 2.5000"), "{:?}", e.hints());
    }

    #[test]
    fn a_loss_that_is_not_finite_stops_at_once() {
        let reason = "the loss is NaN".to_owned();
        assert_eq!(
            OverflowCheck::new(LossScale::None).judge(f64::NAN, 1.0),
            StepDecision::Stop(reason)
        );
    }
}
