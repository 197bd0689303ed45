//! `samples.jsonl`: texts of the model on the way, for people to read; and the newest of them, for whoever
//! looks at the run.

use std::{collections::VecDeque, time::Duration};

use serde::{Deserialize, Serialize};

use super::tail::{Part, Tail};
use crate::{error::Result, fs::Place};

/// Samples that are kept for a screen.
const NEWEST: usize = 64;

/// A line of `samples.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Optimizer steps done.
    pub step: u64,
    /// The text that the model was to go on with or to answer.
    pub prompt: String,
    /// The model's text; most have the prompt at their beginning.
    pub text: String,
}

/// The samples at the end of a run's log, which others write.
#[derive(Debug)]
pub(super) struct NewestSamples {
    tail: Tail,
    samples: VecDeque<Sample>,
}

impl NewestSamples {
    pub(super) fn of(place: Place) -> Self {
        Self { tail: Tail::end_of(place), samples: VecDeque::new() }
    }

    /// Reads what is new; returns whether there was something. Lines that are no samples are left out.
    pub(super) fn look(&mut self, patience: Duration) -> Result<bool> {
        let samples = &mut self.samples;
        self.tail.read(patience, &mut |part| match part {
            Part::Anew => samples.clear(),
            Part::Line(line) => {
                if let Ok(sample) = serde_json::from_slice(line) {
                    samples.push_back(sample);
                    samples.drain(..samples.len().saturating_sub(NEWEST));
                }
            }
        })
    }

    /// The newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::StepLog;

    #[test]
    fn the_newest_samples_are_read_and_those_of_steps_that_are_gone_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("samples.jsonl");
        let mut newest = NewestSamples::of((&path).into());
        assert!(!newest.look(Duration::ZERO).unwrap());
        let mut log = StepLog::open(&path).unwrap();
        for step in 1..=100 {
            let sample = Sample { step, prompt: "It".into(), text: "x".repeat(4000) };
            log.append(&sample).unwrap();
        }
        let steps = |newest: &NewestSamples| newest.newest().map(|s| s.step).collect::<Vec<_>>();
        assert!(newest.look(Duration::ZERO).unwrap());
        assert_eq!((steps(&newest).len(), steps(&newest)[0]), (NEWEST, 100));
        StepLog::resume(&path, 2).unwrap();
        assert!(newest.look(Duration::ZERO).unwrap());
        assert_eq!(steps(&newest), [2, 1]);
        assert!(!newest.look(Duration::ZERO).unwrap());
    }
}
