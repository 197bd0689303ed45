//! The best checkpoint of a run: that of the evaluation with the lowest loss among those whose checkpoint
//! is there.
//!
//! An evaluation is written down, then its checkpoint appears, then it is marked, and only then an older one
//! may go. Whoever goes on with a run looks at the evaluations and the checkpoints, and not at the mark
//! alone: a process that was killed between two of these leaves a mark that is one behind.

use super::{RunDir, RunLog, catalog::lowest};
use crate::error::Result;

/// Marks the best checkpoint in `dir`; returns its loss. None is marked where no evaluation has a checkpoint.
pub(super) fn settle(dir: &RunDir, log: &RunLog) -> Result<Option<f64>> {
    let store = dir.checkpoints();
    let there: Vec<u64> = store.list()?.iter().map(|saved| saved.step).collect();
    let mut evaluations = log.evaluations()?;
    evaluations.retain(|(step, _)| there.contains(step));
    let Some((step, loss)) = lowest(&evaluations) else { return Ok(None) };
    if store.best()?.is_none_or(|marked| marked.step != step) {
        store.mark_best(step)?;
    }
    Ok(Some(loss))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::LineInterval;

    /// A run with these evaluations and checkpoints, and a mark.
    fn run(evaluations: &[(u64, f64)], saved: &[u64], marked: u64) -> (tempfile::TempDir, RunDir) {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), "a").unwrap();
        let mut log = RunLog::open(&dir, None, LineInterval::Never).unwrap();
        for &(step, loss) in evaluations {
            log.on_evaluate(step, loss, loss.exp()).unwrap();
        }
        for &step in saved {
            dir.checkpoints().save(step, None, |_| Ok(())).unwrap();
        }
        dir.checkpoints().mark_best(marked).unwrap();
        (root, dir)
    }

    /// The loss and the step of the best one, by what a killed process has left.
    fn found(evaluations: &[(u64, f64)], saved: &[u64], marked: u64) -> (Option<f64>, Option<u64>) {
        let (_root, dir) = run(evaluations, saved, marked);
        let log = RunLog::open(&dir, None, LineInterval::Never).unwrap();
        let loss = settle(&dir, &log).unwrap();
        (loss, dir.checkpoints().best().unwrap().map(|best| best.step))
    }

    #[test]
    fn a_mark_that_is_one_behind_is_set_right() {
        let evaluations = [(1, 4.0), (2, 3.0), (3, 2.0)];
        assert_eq!(found(&evaluations, &[2, 3], 2), (Some(2.0), Some(3)));
        // Killed before the checkpoint was there: the one before is still the best.
        assert_eq!(found(&evaluations, &[2], 2), (Some(3.0), Some(2)));
    }

    #[test]
    fn of_two_evaluations_at_one_step_the_lower_one_counts() {
        assert_eq!(found(&[(1, 2.0), (1, 9.0), (2, 3.0)], &[1, 2], 1), (Some(2.0), Some(1)));
    }

    #[test]
    fn checkpoints_without_an_evaluation_are_none_of_the_best() {
        assert_eq!(found(&[(5, 2.0)], &[1, 2], 9), (None, None));
    }
}
