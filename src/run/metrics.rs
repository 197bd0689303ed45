//! `metrics.jsonl`: the [log](super::step_log) of a run's steps and evaluations.
//!
//! A step's line has `step`, `loss`, `lr`, ...; an evaluation's `step`, `eval_loss`,
//! `eval_perplexity`, the names that Hugging Face's Trainer uses. Numbers that JSON has no word for
//! (an infinite norm) are `null`.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::{
    engine::{MemoryUse, PhaseTimes, Skip},
    error::Result,
    fs::Place,
    run::{
        StepReport,
        step_log::{lines, step_of},
    },
};

/// The line of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Optimizer steps done.
    pub step: u64,
    /// The step's mean loss.
    pub loss: f64,
    /// The learning rate.
    pub lr: f64,
    /// The gradient's norm before clipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// The loss scale; only with fp16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// True when the step was skipped; absent otherwise.
    #[serde(skip_serializing_if = "is_false")]
    pub skipped: bool,
    /// The z-score of the loss, for which the step was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_zscore: Option<f64>,
    /// The z-score of the gradient's norm, for which the step was skipped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm_zscore: Option<f64>,
    /// Tokens of the step, over all ranks.
    pub tokens: u64,
    /// Tokens a second over the recent steps.
    pub tokens_per_second: f64,
    /// The model's floating-point operations a second over the recent steps, over all ranks.
    pub flops_per_second: f64,
    /// The share of what the devices are capable of; only where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Seconds since this process started.
    pub elapsed_s: f64,
    /// The phases of the step; only with `wall_clock_breakdown`.
    #[serde(flatten)]
    pub phases: Option<PhaseMs>,
    /// Host memory of the process in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// The most host memory that was in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The most memory that libtorch has taken from the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// Rank 0's memory by kind at the peak so far; only where the peak is a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryUse>,
}

/// The times of a step's phases on rank 0, in milliseconds; see [`PhaseTimes`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PhaseMs {
    /// Forward passes.
    pub forward_ms: f64,
    /// Backward passes.
    pub backward_ms: f64,
    /// Summing over the ranks.
    pub reduce_ms: f64,
    /// Norm, clipping and optimizer.
    pub step_ms: f64,
    /// Making the batches.
    pub data_ms: f64,
}

impl From<PhaseTimes> for PhaseMs {
    fn from(times: PhaseTimes) -> Self {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        Self {
            forward_ms: ms(times.forward),
            backward_ms: ms(times.backward),
            reduce_ms: ms(times.reduce),
            step_ms: ms(times.step),
            data_ms: ms(times.data),
        }
    }
}

/// The line of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluated {
    /// Optimizer steps done.
    pub step: u64,
    /// The mean loss over the evaluation's target tokens.
    pub eval_loss: f64,
    /// `exp(eval_loss)`.
    pub eval_perplexity: f64,
}

/// The losses of a run by step.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Curves {
    pub(super) train: Vec<(u64, f64)>,
    pub(super) eval: Vec<(u64, f64)>,
    /// The speed at the last step.
    pub(super) tokens_per_second: Option<f64>,
}

impl From<&StepReport> for Record {
    fn from(report: &StepReport) -> Self {
        let values = &report.values;
        let (loss_zscore, grad_norm_zscore) = match values.skipped {
            Some(Skip::Loss(z)) => (Some(z), None),
            Some(Skip::GradNorm(z)) => (None, Some(z)),
            Some(Skip::NotFinite) | None => (None, None),
        };
        Self {
            step: values.step,
            loss: values.loss,
            lr: values.lr,
            grad_norm: values.grad_norm,
            loss_scale: values.loss_scale,
            skipped: values.skipped.is_some(),
            loss_zscore,
            grad_norm_zscore,
            tokens: values.tokens,
            tokens_per_second: report.tokens_per_second,
            flops_per_second: report.flops_per_second,
            mfu: report.mfu,
            elapsed_s: report.elapsed.as_secs_f64(),
            phases: values.phases.map(PhaseMs::from),
            resident_bytes: report.memory.map(|m| m.resident),
            peak_bytes: report.memory.map(|m| m.peak),
            device_bytes: values.device_bytes,
            memory: None,
        }
    }
}

/// The losses that the log at `path` holds; those that are not finite are left out.
pub(super) fn curves(path: &Place) -> Result<Curves> {
    let mut curves = Curves::default();
    for (_, value) in lines(path)? {
        let Some(step) = step_of(&value) else { continue };
        if let Some(loss) = value.get("loss").and_then(Value::as_f64) {
            curves.train.push((step, loss));
        }
        if let Some(speed) = value.get("tokens_per_second").and_then(Value::as_f64) {
            curves.tokens_per_second = Some(speed);
        }
        if let Some(loss) = value.get("eval_loss").and_then(Value::as_f64) {
            curves.eval.push((step, loss));
        }
    }
    Ok(curves)
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run::{StepLog, meter::tests::report, step_log::tests::log};

    fn evaluated(step: u64, eval_loss: f64) -> Evaluated {
        Evaluated { step, eval_loss, eval_perplexity: eval_loss.exp() }
    }

    #[test]
    fn a_line_is_there_as_soon_as_it_is_appended() {
        let (_dir, path) = log();
        let mut log = StepLog::open(&path).unwrap();
        log.append(&Record::from(&report(1, 2))).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1,\"loss\":4.2134,\"lr\":0.0003,\"grad_norm\":1.21,\"tokens\":100,\
             \"tokens_per_second\":3400.0,\"flops_per_second\":136000000000.0,\"elapsed_s\":2.0,\"resident_bytes\":2040109466,\
             \"peak_bytes\":3221225472}\n"
        );
    }

    #[test]
    fn losses_are_read_back_by_step() {
        let (_dir, path) = log();
        let mut log = StepLog::open(&path).unwrap();
        for step in 1..=2 {
            log.append(&Record::from(&report(step, step))).unwrap();
            log.append(&evaluated(step, step as f64)).unwrap();
        }
        let curves = curves(&(&path).into()).unwrap();
        assert_eq!(curves.train, [(1, 4.2134), (2, 4.2134)]);
        assert_eq!(curves.eval, [(1, 1.0), (2, 2.0)]);
    }

    #[test]
    fn what_is_not_finite_is_null_and_no_part_of_a_curve() {
        let (_dir, path) = log();
        let mut log = StepLog::open(&path).unwrap();
        log.append(&evaluated(1, f64::NAN)).unwrap();
        log.append(&evaluated(2, 3.0)).unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("\"eval_loss\":null"));
        assert_eq!(curves(&(&path).into()).unwrap().eval, [(2, 3.0)]);
    }
}
