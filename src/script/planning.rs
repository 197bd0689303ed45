//! A recipe that is run to be planned: up to `init_engine`, without weights and without ranks.

use std::cell::{Cell, RefCell};

use rhai::{Dynamic, EvalAltResult, Position};

use crate::{
    config::EngineConfig,
    engine::plan::optimizer_state_bytes,
    error::{Code, Error, Result},
    model::{Gpt2Config, Model},
};

/// What a recipe would train.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The model.
    pub model: Gpt2Config,
    /// The settings of the engine.
    pub config: EngineConfig,
    /// Bytes that its optimizer keeps from step to step.
    pub optimizer_state: u64,
    /// Whether the recipe has a loss of its own, which gets the logits whole.
    pub whole_logits: bool,
    /// Tokens in a row as the recipe packed them, at most; `None` where it did not.
    pub packed: Option<u64>,
    /// Ranks that train together.
    pub world_size: usize,
}

/// The state of a recipe that is planned.
#[derive(Debug)]
pub(crate) struct Planning {
    world_size: usize,
    packed: Cell<Option<u64>>,
    found: RefCell<Option<Planned>>,
}

impl Planning {
    /// For this many ranks.
    pub(super) fn new(world_size: usize) -> Self {
        Self { world_size, packed: Cell::new(None), found: RefCell::new(None) }
    }

    /// Ranks that would train together.
    pub(super) fn world_size(&self) -> usize {
        self.world_size
    }

    /// Notes that the recipe makes rows of this many tokens.
    pub(super) fn packs(&self, tokens: u64) {
        self.packed.set(self.packed.get().max(Some(tokens)));
    }

    /// Notes what the recipe would train; gives what ends it, which no recipe can catch.
    ///
    /// # Errors
    /// [`Code::BadValue`] for a model with layers of the recipe's own, whose memory no formula has.
    pub(super) fn end(
        &self,
        model: &Model,
        config: EngineConfig,
        whole_logits: bool,
    ) -> Result<Box<EvalAltResult>> {
        let Some(gpt2) = model.config().gpt2() else {
            return Err(Error::new(
                Code::BadValue,
                "a plan knows the memory of GPT-2, not of a model's own layers",
            )
            .hint("engine.memory() after a step tells what was used"));
        };
        if let Some(checkpointing) = config.activation_checkpointing {
            checkpointing.check(model.blocks().len())?;
        }
        self.found.replace(Some(Planned {
            model: gpt2.clone(),
            whole_logits,
            optimizer_state: optimizer_state_bytes(model, &config)?,
            config,
            packed: self.packed.get(),
            world_size: self.world_size,
        }));
        Ok(EvalAltResult::ErrorTerminated(Dynamic::UNIT, Position::NONE).into())
    }

    /// What was found, once.
    pub(super) fn take(&self) -> Option<Planned> {
        self.found.take()
    }
}

/// The error of a recipe that asks for more than a plan has.
pub(super) fn needs_weights(what: &str) -> Error {
    Error::new(Code::CallOrder, format!("`{what}` needs weights, which a plan does not load"))
        .hint("a recipe can be planned if it calls init_engine before")
}

/// The error of a recipe that trains nothing.
pub(super) fn trains_nothing() -> Error {
    Error::new(Code::Usage, "this recipe trains nothing: it ended without a call of `init_engine`")
}
