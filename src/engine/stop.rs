//! Stopping amid a pass: between two layers, with what the step had so far given up.

use std::rc::Rc;

use super::{Engine, accumulation::Accumulation};
use crate::error::{Code, Error, Result};

/// Says whether the user wants a pass to end.
#[derive(Clone, Default)]
pub(super) struct Stop(Option<Rc<dyn Fn() -> bool>>);

impl Stop {
    /// # Errors
    /// [`Code::Interrupted`] where the pass is to end.
    pub(super) fn check(&self) -> Result<()> {
        match &self.0 {
            Some(stop) if stop() => Err(Error::new(Code::Interrupted, "interrupted")),
            _ => Ok(()),
        }
    }
}

impl Engine {
    /// Asks `stop` between two layers of a forward and of a backward pass. Where it says so, the pass
    /// ends with [`Code::Interrupted`]: a forward pass as if it had not begun, a backward pass with
    /// the micro batches of its step forgotten. An optimizer step is always finished. Only for an
    /// engine that is alone: other ranks would wait.
    pub fn stop_when(&mut self, stop: Rc<dyn Fn() -> bool>) {
        if self.group.world_size() == 1 {
            self.stop = Stop(Some(stop));
        }
    }

    /// Goes back to the end of the last optimizer step.
    pub(super) fn forget_step(&mut self) {
        self.pending = None;
        self.gradients.clear();
        self.accumulation = Accumulation::default();
        self.timers.reset();
        self.is_inconsistent = false;
    }
}
