//! `metrics.jsonl`: the [log](super::step_log) of a run's steps and evaluations.
//!
//! A step's line has `step`, `loss`, `lr`, ...; an evaluation's `step`, `eval_loss`,
//! `eval_perplexity`, the names that Hugging Face's Trainer uses. Numbers that JSON has no word for
//! (an infinite norm) are `null`.

use serde::Serialize;
use serde_json::Value;

use crate::{
    error::Result,
    fs::Place,
    run::step_log::{lines, step_of},
};

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
        log.append(&report(1, 2)).unwrap();
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
            log.append(&report(step, step)).unwrap();
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
