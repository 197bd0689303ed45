//! The exponential moving average of the weights: a float32 copy of the masters, kept with the
//! optimizer's state, which follows them after each step that was applied.

use super::state_file::UnitState;
use crate::{config::EmaConfig, error::Result, tensor::no_grad};

/// One of the two weights that there are of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weights {
    Trained,
    Averaged,
}

/// The way from weights to their averages.
#[derive(Debug)]
pub(super) struct Averages {
    config: Option<EmaConfig>,
    /// Steps that the averages were made of.
    updates: u64,
    /// Whether the model has the averages, and the averages' place the weights.
    pub(super) are_in_use: bool,
}

impl Averages {
    /// Averages of no step.
    pub(super) fn new(config: Option<EmaConfig>) -> Self {
        Self { config, updates: 0, are_in_use: false }
    }

    /// Brings the averages of `units` nearer to the weights that a step has just changed.
    pub(super) fn update(&self, units: &[(usize, &UnitState)]) -> Result<()> {
        let Some(config) = self.config else { return Ok(()) };
        let weight = 1.0 - config.share(self.updates);
        for (_, UnitState { master, average, .. }) in units {
            if let Some(average) = average {
                let _ = no_grad(|| average.shallow_clone().f_lerp_(master, weight))?;
            }
        }
        Ok(())
    }

    /// Counts the step whose weights were averaged.
    pub(super) fn end_step(&mut self) {
        self.updates += 1;
    }

    /// Steps that the averages were made of, where there are averages.
    pub(super) fn updates(&self) -> Option<u64> {
        self.config.map(|_| self.updates)
    }

    /// Goes on from a checkpoint; from one without averages they begin anew.
    pub(super) fn restore(&mut self, updates: Option<u64>) {
        self.updates = updates.unwrap_or(0);
    }
}
