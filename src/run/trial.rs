//! A run that is only tried (`--dry-run`): one step, the evaluations that come with it, one checkpoint.
//! Its directory goes away when it ends, however it ends.

use crate::{
    checkpoint::Store,
    error::Result,
    fs::{Place, remove_dir},
};

/// The directory of a run that is only tried.
#[derive(Debug)]
pub(super) struct Trial {
    place: Place,
    evaluations: usize,
}

impl Trial {
    /// That of the run in `place`.
    pub(super) fn of(place: Place) -> Self {
        Self { place, evaluations: 0 }
    }

    /// Counts an evaluation.
    pub(super) fn evaluated(&mut self) {
        self.evaluations += 1;
    }

    /// Reads the checkpoint back; returns the line that sums the trial up.
    pub(super) fn end(&self) -> Result<String> {
        Store::verify(Store::resolve(self.place.join("checkpoints"))?)?;
        let evaluations = match self.evaluations {
            0 => "no evaluation (the recipe makes none so early)".to_owned(),
            1 => "one evaluation".to_owned(),
            n => format!("{n} evaluations"),
        };
        Ok(format!("the dry run is done: one step, {evaluations}, one checkpoint; nothing is kept"))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // A directory that cannot be removed now is removed by the next start of a run.
        let _ = remove_dir(&self.place);
        if let Some(root) = self.place.parent() {
            let _ = root.remove_empty_dir();
        }
    }
}
