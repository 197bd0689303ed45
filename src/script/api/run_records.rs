//! The records of a run that a recipe holds, and the one way to write into them.

use std::cell::{Ref, RefMut};

use super::engine::Engine;
use crate::{error::Result, run::Training, script::shared::Shared};

/// The records of a run, with the engine whose steps they are.
#[derive(Clone)]
pub(super) struct Records {
    training: Shared<Training>,
    engine: Engine,
}

impl Records {
    /// The records of a run that has started.
    pub(super) fn new(training: Training, engine: Engine) -> Self {
        Self { training: Shared::new(training), engine }
    }

    /// The records, to be read.
    pub(super) fn read(&self) -> Result<Ref<'_, Training>> {
        self.training.read()
    }

    /// The records, for `call` to write into.
    ///
    /// # Errors
    /// The steps that the engine makes will be undone: no file of the run may tell of them.
    pub(super) fn write(&self, call: &str) -> Result<RefMut<'_, Training>> {
        self.check(call)?;
        self.training.write()
    }

    /// Refuses what [`Records::write`] would refuse, before `call` does anything.
    pub(super) fn check(&self, call: &str) -> Result<()> {
        self.engine.read()?.check_kept(call)
    }
}
