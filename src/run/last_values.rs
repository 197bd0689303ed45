//! The values with which a run stands in a list: those of its last step, and its best evaluation.
//!
//! `run.json` has them from the end of a run on. Of a run that goes on, or was killed, the last step is
//! at the end of its metrics.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tail::{Part, Tail};
use crate::{error::Result, fs::Place};

/// The last values of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LastValues {
    /// Optimizer steps done.
    pub step: u64,
    /// The loss of the last step.
    #[serde(default)]
    pub loss: Option<f64>,
    /// Tokens a second at the last step.
    #[serde(default)]
    pub tokens_per_second: Option<f64>,
    /// The evaluation with the lowest loss.
    #[serde(default)]
    pub best_evaluation: Option<EvaluationAt>,
}

/// An evaluation of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct EvaluationAt {
    /// Optimizer steps done.
    pub step: u64,
    /// Its loss.
    pub loss: f64,
}

/// A line of `metrics.jsonl`.
#[derive(Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    tokens_per_second: Option<f64>,
    eval_loss: Option<f64>,
}

impl LastValues {
    /// The values that the run of this `run.json` had when it ended; `None` where it does not tell them.
    pub(super) fn told(told: &Map<String, Value>) -> Option<Self> {
        told.get("loss")?;
        Self::deserialize(told).ok()
    }

    /// The values at the end of these metrics, of which no more is read than the last 256 KiB. The best
    /// evaluation is the better one of those there and the one in `told`; where that does not tell of
    /// evaluations and there is more to read, it is not known.
    pub(super) fn at_the_end(metrics: Place, told: &Map<String, Value>) -> Result<Self> {
        let mut found = Self::default();
        let mut tail = Tail::of(metrics);
        tail.read(Duration::ZERO, &mut |part| {
            if let Part::Line(line) = part
                && let Ok(line) = serde_json::from_slice(line)
            {
                found.add(&line);
            }
        })?;
        let before = told.get("best_evaluation");
        match before.and_then(|best| EvaluationAt::deserialize(best).ok()) {
            Some(best) => _ = found.improve(best),
            None if before.is_none() && !tail.is_whole() => found.best_evaluation = None,
            None => {}
        }
        Ok(found)
    }

    /// Takes an evaluation in where it is the best; returns whether it is. The first of equal ones is.
    pub(super) fn improve(&mut self, found: EvaluationAt) -> bool {
        let key = |e: EvaluationAt| (e.loss, e.step);
        let is_best = found.loss.is_finite()
            && self.best_evaluation.is_none_or(|best| key(found) < key(best));
        if is_best {
            self.best_evaluation = Some(found);
        }
        is_best
    }

    fn add(&mut self, line: &Line) {
        if let Some(loss) = line.eval_loss {
            self.improve(EvaluationAt { step: line.step, loss });
        } else if line.tokens_per_second.is_some() {
            (self.step, self.loss, self.tokens_per_second) =
                (line.step, line.loss, line.tokens_per_second);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write, fs};

    use serde_json::json;

    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    /// Metrics of so many steps, the first of which is followed by the best evaluation.
    fn metrics(steps: u64) -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut text = String::new();
        for step in 1..=steps {
            let loss = step as f64 / 2.0;
            writeln!(text, "{}", json!({ "step": step, "loss": loss, "tokens_per_second": 9.0 }))
                .unwrap();
            writeln!(text, "{}", json!({ "step": step, "eval_loss": loss })).unwrap();
        }
        fs::write(&path, text).unwrap();
        (dir, path.into())
    }

    #[test]
    fn a_short_log_is_all_that_is_needed() {
        let (_dir, place) = metrics(3);
        let found = LastValues::at_the_end(place, &Map::new()).unwrap();
        assert_eq!((found.step, found.loss, found.tokens_per_second), (3, Some(1.5), Some(9.0)));
        assert_eq!(found.best_evaluation, Some(EvaluationAt { step: 1, loss: 0.5 }));
        let none = LastValues::at_the_end("nowhere".into(), &Map::new()).unwrap();
        assert_eq!(none, LastValues::default());
    }

    /// The best evaluation of a long log is not at its end.
    #[test]
    fn of_a_long_log_the_best_evaluation_is_what_the_run_tells() {
        let (_dir, place) = metrics(10_000);
        let best = |told: Value| {
            let found = LastValues::at_the_end(place.clone(), &map(told)).unwrap();
            assert_eq!(found.step, 10_000);
            found.best_evaluation
        };
        assert_eq!(best(json!({})), None);
        let first = EvaluationAt { step: 1, loss: 0.5 };
        assert_eq!(best(json!({ "best_evaluation": first })), Some(first));
        let late = best(json!({ "best_evaluation": { "step": 1, "loss": 1e9 } })).unwrap();
        assert!(late.step > 5000, "it was killed before it told of it: {late:?}");
    }

    #[test]
    fn what_is_told_is_taken_and_a_loss_that_is_not_finite_is_none() {
        let told = map(json!({ "status": "failed", "step": 7, "loss": null }));
        let expected = LastValues { step: 7, ..LastValues::default() };
        assert_eq!(LastValues::told(&told), Some(expected));
        assert_eq!(LastValues::told(&map(json!({ "step": 7 }))), None);
        let mut values = LastValues::default();
        assert!(!values.improve(EvaluationAt { step: 1, loss: f64::NAN }));
        assert!(values.improve(EvaluationAt { step: 2, loss: 1.0 }));
        assert!(!values.improve(EvaluationAt { step: 3, loss: 1.0 }));
    }
}
