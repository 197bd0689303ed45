//! The records of a run, and the choice of the steps that get a line on the screen.
//!
//! Every step goes to `metrics.jsonl`; how often one is shown is a [`LineInterval`]. The choice
//! depends on the reports alone, not on a clock.

use std::{num::NonZeroU64, path::PathBuf, time::Duration};

use serde::Serialize;

use crate::{
    engine::MemoryUse,
    error::Result,
    run::{
        Evaluated, EvaluationAt, LastValues, RunDir, Sample, StepLog, StepReport, loss_svg,
        metrics::{Curves, curves},
        step_log::forget_after,
    },
};

/// How long a paced log is silent at most, and about how often it speaks.
const PACE: Duration = Duration::from_secs(5);
/// A paced log shows the first steps, so that a wrong loss or speed is seen at once.
const FIRST_STEPS: u64 = 3;

/// Which steps get a line. The first step of a process and the last of a run always do, unless it
/// is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineInterval {
    /// None but skipped ones: for a terminal, where a bar shows each step.
    Never,
    /// Each one.
    EveryStep,
    /// Steps that this number divides: the option `steps_per_print`.
    Steps(NonZeroU64),
    /// The first three, then about one in five seconds: for a file.
    Paced,
}

impl LineInterval {
    /// The steps that the option `steps_per_print` names, where it is given and lines are shown.
    pub fn or_steps(self, steps_per_print: Option<NonZeroU64>) -> Self {
        match (self, steps_per_print) {
            (Self::Never, _) | (_, None) => self,
            (_, Some(every)) => Self::Steps(every),
        }
    }
}

/// The observer of a run.
#[derive(Debug)]
pub struct RunLog {
    dir: RunDir,
    metrics: StepLog,
    /// Opened by the first sample.
    samples: Option<StepLog>,
    interval: LineInterval,
    /// The memory by kind that was written last.
    memory: MemoryUse,
    steps_seen: u64,
    last_line: Duration,
}

/// The line of a step.
#[derive(Serialize)]
struct StepLine<'a> {
    #[serde(flatten)]
    report: &'a StepReport,
    /// Rank 0's memory by kind at the peak so far; only where the peak is a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryUse>,
}

impl RunLog {
    /// Opens the log of the run in `dir`. `resumed_after` is the step of the checkpoint that the
    /// run goes on from; metrics and samples of later steps are dropped. `None` for a new run.
    pub fn open(dir: &RunDir, resumed_after: Option<u64>, interval: LineInterval) -> Result<Self> {
        let metrics = match resumed_after {
            Some(step) => {
                forget_after(&dir.samples(), step)?;
                StepLog::resume(dir.metrics(), step)?
            }
            None => StepLog::open(dir.metrics())?,
        };
        Ok(Self {
            dir: dir.clone(),
            metrics,
            samples: None,
            interval,
            memory: MemoryUse::default(),
            steps_seen: 0,
            last_line: Duration::ZERO,
        })
    }

    /// Writes a step down; returns the line to show, if it is time for one. A skipped step always
    /// gets one.
    pub fn on_step(&mut self, report: &StepReport) -> Result<Option<String>> {
        let memory = report.values.memory_use;
        let is_new = memory != std::mem::replace(&mut self.memory, memory);
        self.metrics.append(&StepLine { report, memory: is_new.then_some(memory) })?;
        self.steps_seen += 1;
        if !self.is_due(report) {
            return Ok(None);
        }
        self.last_line = report.elapsed;
        Ok(Some(report.to_string()))
    }

    /// Writes an evaluation down; returns the line to show.
    pub fn on_evaluate(&mut self, step: u64, loss: f64, perplexity: f64) -> Result<String> {
        self.metrics.append(&Evaluated { step, eval_loss: loss, eval_perplexity: perplexity })?;
        Ok(format!("step {step}  eval loss {loss:.3}  perplexity {perplexity:.2}"))
    }

    /// Writes a sample down.
    pub fn on_sample(&mut self, sample: &Sample) -> Result<()> {
        let samples = match &mut self.samples {
            Some(samples) => samples,
            none => none.insert(StepLog::open(self.dir.samples())?),
        };
        samples.append(sample)
    }

    /// The losses of all evaluations by their steps.
    pub fn evaluations(&self) -> Result<Vec<(u64, f64)>> {
        Ok(curves(&self.dir.metrics())?.eval)
    }

    /// The last values that were written down.
    pub(super) fn last_values(&self) -> Result<LastValues> {
        let Curves { train, eval, tokens_per_second } = curves(&self.dir.metrics())?;
        let loss = train.last().map(|&(_, loss)| loss);
        let mut last = LastValues { loss, tokens_per_second, ..LastValues::default() };
        for (step, loss) in eval {
            last.improve(EvaluationAt { step, loss });
        }
        Ok(last)
    }

    /// Draws `loss.svg`; returns where it is, or `None` when there is no loss to draw. May be called
    /// while the run goes on.
    pub fn finish(&self) -> Result<Option<PathBuf>> {
        draw_losses(&self.dir)
    }

    fn is_due(&self, report: &StepReport) -> bool {
        let step = report.values.step;
        let ends = self.steps_seen == 1 || report.total_steps == Some(step);
        report.values.skipped.is_some()
            || match self.interval {
                LineInterval::Never => false,
                _ if ends => true,
                LineInterval::EveryStep => true,
                LineInterval::Steps(n) => step.is_multiple_of(n.get()),
                LineInterval::Paced => {
                    self.steps_seen <= FIRST_STEPS
                        || report.elapsed.saturating_sub(self.last_line) >= PACE
                }
            }
    }
}

/// Draws `loss.svg` from all that `metrics.jsonl` holds.
pub(super) fn draw_losses(dir: &RunDir) -> Result<Option<PathBuf>> {
    let curves = curves(&dir.metrics())?;
    let Some(svg) = loss_svg(&curves.train, &curves.eval)? else { return Ok(None) };
    let path = dir.loss_svg();
    svg.write(&path)?;
    Ok(Some(path.path().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::run::meter::tests::report;

    fn run() -> (tempfile::TempDir, RunDir) {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), "a").unwrap();
        (root, dir)
    }

    /// The steps that get a line, of `(step, seconds since the start)`.
    fn shown(interval: LineInterval, steps: impl Iterator<Item = (u64, u64)>) -> Vec<u64> {
        let (_root, dir) = run();
        let mut log = RunLog::open(&dir, None, interval).unwrap();
        steps
            .filter(|&(step, at)| log.on_step(&report(step, at)).unwrap().is_some())
            .map(|(step, _)| step)
            .collect()
    }

    #[test]
    fn each_step_can_be_shown_or_none() {
        assert!(shown(LineInterval::Never, (1..=4).map(|step| (step, 9 * step))).is_empty());
        let steps = (1..=4).map(|step| (step, 0));
        assert_eq!(shown(LineInterval::EveryStep, steps), [1, 2, 3, 4]);
    }

    #[test]
    fn steps_per_print_is_kept_to_with_the_first_and_the_last_step() {
        let every = LineInterval::Steps(NonZeroU64::new(10).unwrap());
        let steps = (984..=1000).map(|step| (step, 0));
        assert_eq!(shown(every, steps), [984, 990, 1000]);
    }

    #[test]
    fn a_file_gets_the_first_steps_and_then_a_line_in_five_seconds() {
        let steps = (1..=20).map(|step| (step, step));
        assert_eq!(shown(LineInterval::Paced, steps), [1, 2, 3, 8, 13, 18]);
        let slow = (1..=5).map(|step| (step, 60 * step));
        assert_eq!(shown(LineInterval::Paced, slow), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_skipped_step_is_always_shown() {
        let (_root, dir) = run();
        let every = LineInterval::Steps(NonZeroU64::new(100).unwrap());
        let mut log = RunLog::open(&dir, None, every).unwrap();
        log.on_step(&report(1, 0)).unwrap();
        let mut skipped = report(2, 0);
        skipped.values.skipped = Some(crate::engine::Skip::NotFinite);
        assert!(log.on_step(&skipped).unwrap().unwrap().contains("skipped"));
    }

    #[test]
    fn memory_by_kind_is_written_where_it_is_new() {
        let (_root, dir) = run();
        let mut log = RunLog::open(&dir, None, LineInterval::Never).unwrap();
        for (step, parameters) in [(1, 5), (2, 5), (3, 6)] {
            let mut report = report(step, 0);
            report.values.memory_use.parameters = parameters;
            log.on_step(&report).unwrap();
        }
        let told: Vec<_> = fs::read_to_string(dir.metrics().path())
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|line| line.get("memory").map(|memory| memory["parameters"].clone()))
            .collect();
        assert_eq!(told, [Some(5.into()), None, Some(6.into())]);
    }

    #[test]
    fn a_resumed_run_continues_its_metrics_and_its_curve() {
        let (_root, dir) = run();
        let mut log = RunLog::open(&dir, None, LineInterval::EveryStep).unwrap();
        assert_eq!(log.finish().unwrap(), None);
        for step in 1..=5 {
            log.on_step(&report(step, step)).unwrap();
        }
        assert_eq!(
            log.on_evaluate(5, 3.912, 50.0).unwrap(),
            "step 5  eval loss 3.912  perplexity 50.00"
        );
        drop(log);
        let mut log = RunLog::open(&dir, Some(3), LineInterval::EveryStep).unwrap();
        log.on_step(&report(4, 1)).unwrap();
        let steps: Vec<_> = fs::read_to_string(dir.metrics().path())
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].clone())
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        let svg = log.finish().unwrap().unwrap();
        assert!(fs::read_to_string(svg).unwrap().contains("train"));
    }
}
