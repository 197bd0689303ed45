//! The recipe that runs.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use serde_json::{Map, Value};

use crate::{
    engine::RecipeRecord,
    error::Result,
    recipe::{
        file::Recipe,
        params::{self, Parameter},
        sources::Sources,
    },
};

/// The name, the parameters' values and the Rhai engine of the recipe that runs.
#[derive(Default)]
pub(crate) struct Program {
    /// The recipe's name among the sources.
    name: RefCell<String>,
    values: RefCell<Map<String, Value>>,
    /// Weak because the engine owns the host.
    engine: RefCell<Weak<rhai::Engine>>,
}

impl Program {
    /// Notes the recipe or input that is to run.
    pub(crate) fn begin(&self, name: &str, parameters: &[Parameter]) -> Result<()> {
        self.values.replace(params::to_json(parameters)?);
        self.name.replace(name.to_owned());
        Ok(())
    }

    /// Notes the engine that runs it.
    pub(crate) fn run_on(&self, engine: &Rc<rhai::Engine>) {
        self.engine.replace(Rc::downgrade(engine));
    }

    /// The engine, while a script runs.
    pub(crate) fn engine(&self) -> Weak<rhai::Engine> {
        self.engine.borrow().clone()
    }

    /// The recipe's name without directory and ending.
    pub(crate) fn stem(&self) -> String {
        Recipe::stem(&self.name.borrow())
    }

    /// The recipe as runs and checkpoints keep it.
    pub(crate) fn record(&self, sources: &Sources) -> RecipeRecord {
        RecipeRecord {
            source: sources.text(&self.name.borrow()).unwrap_or_default(),
            params: self.values.borrow().clone(),
        }
    }
}
