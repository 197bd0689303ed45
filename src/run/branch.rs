//! A run that goes on from an earlier checkpoint than the latest of another run: it branches off into a
//! directory of its own, and begins there with what that one had written down up to its step.

use super::{RunDir, step_log::copy_until};
use crate::{checkpoint::Store, error::Result, fs::Place};

/// The run that another one branches off from, at a step.
#[derive(Debug)]
pub(super) struct Branch {
    from: RunDir,
    step: u64,
}

impl Branch {
    /// The run that has `checkpoint`, which is of `step`; `None` for a checkpoint that is in no run that
    /// may be read.
    pub(super) fn at(checkpoint: &Place, step: u64) -> Option<Self> {
        let from = RunDir::look_at(checkpoint.parent()?.parent()?)?;
        Some(Self { from, step })
    }

    /// The name of the run.
    pub(super) fn name(&self) -> &str {
        self.from.name()
    }

    /// Copies its metrics and samples up to the step.
    pub(super) fn copy_logs(&self, to: &RunDir) -> Result<()> {
        copy_until(&self.from.metrics(), &to.metrics(), self.step)?;
        copy_until(&self.from.samples(), &to.samples(), self.step)
    }

    /// Copies the checkpoint of the best of these evaluations that has one.
    pub(super) fn copy_best(&self, to: &RunDir, evaluations: &[(u64, f64)]) -> Result<()> {
        let saved = self.from.checkpoints().list()?;
        let with_checkpoint = evaluations.iter().filter_map(|&(step, loss)| {
            saved.iter().find(|saved| saved.step == step).map(|saved| (loss, saved))
        });
        let best =
            with_checkpoint.min_by(|a, b| (a.0.total_cmp(&b.0)).then(a.1.step.cmp(&b.1.step)));
        let Some((_, best)) = best else { return Ok(()) };
        let place = self.from.place().beside(&best.path);
        Store::verify(&place)?;
        to.checkpoints().adopt(best.step, &place)
    }
}
