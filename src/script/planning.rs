//! A recipe that is only planned: it runs up to `init_engine`, without weights and without ranks.

use std::{cell::RefCell, rc::Rc};

use rhai::{Dynamic, EvalAltResult, Position};

use crate::{
    config::EngineConfig,
    engine::{fitting::RowShape, plan::optimizer_state_bytes, trained},
    error::{Code, Error, Result},
    model::Model,
};

/// The training of a recipe.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The model.
    pub model: Rc<Model>,
    /// The settings of the engine.
    pub config: EngineConfig,
    /// Bytes that its optimizer keeps from step to step.
    pub optimizer_state: u64,
    /// The rows as the recipe makes them.
    pub rows: RowShape,
    /// Ranks that train together.
    pub world_size: usize,
    /// Those of them that have the same layers.
    pub replicas: usize,
}

/// The state of a recipe that is planned.
#[derive(Debug, Default)]
pub(crate) struct Planning {
    world_size: usize,
    has_bf16: bool,
    found: RefCell<Option<Planned>>,
}

impl Planning {
    /// For this many ranks, on devices that compute in bfloat16 or do not.
    pub(super) fn new(world_size: usize, has_bf16: bool) -> Self {
        Self { world_size, has_bf16, ..Self::default() }
    }

    /// Ranks that would train together.
    pub(super) fn world_size(&self) -> usize {
        self.world_size
    }

    /// Notes the training; returns the error that ends the recipe, which no recipe can catch.
    pub(super) fn end(
        &self,
        model: &Rc<Model>,
        mut config: EngineConfig,
        rows: RowShape,
    ) -> Result<Box<EvalAltResult>> {
        config.precision = config.precision.on(self.has_bf16);
        let shape = config.mesh.shape(self.world_size)?;
        let model = &trained(model, &config)?;
        model.measure()?;
        if let Some(checkpointing) = config.activation_checkpointing {
            checkpointing.check(model.blocks())?;
        }
        self.found.replace(Some(Planned {
            model: Rc::clone(model),
            rows,
            optimizer_state: optimizer_state_bytes(model, &config)?,
            config,
            world_size: self.world_size,
            replicas: shape.dp,
        }));
        Ok(EvalAltResult::ErrorTerminated(Dynamic::UNIT, Position::NONE).into())
    }

    /// The training that was found, once.
    pub(super) fn take(&self) -> Option<Planned> {
        self.found.take()
    }
}

/// The error of a function that needs weights.
pub(super) fn needs_weights(what: &str) -> Error {
    Error::new(Code::CallOrder, format!("`{what}` needs weights, which a plan does not load"))
        .hint("a recipe can be planned if it calls init_engine before")
}

/// The error of a recipe that trains nothing.
pub(super) fn trains_nothing() -> Error {
    Error::new(Code::Usage, "this recipe trains nothing: it ended without a call of `init_engine`")
}
