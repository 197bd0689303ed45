//! The speed of an `Engine` in scripts.

use rhai::plugin::*;

use super::engine::Engine;
use crate::recipe::error::ScriptResult;

/// The speed of training.
#[export_module]
pub mod api {
    /// Returns the tokens a second of the last 20 steps, over all ranks; `()` before the first. The time
    /// between two steps (evaluations, checkpoints) is left out.
    #[rhai_fn(get = "tokens_per_second", return_raw, pure)]
    pub fn tokens_per_second(engine: &mut Engine) -> ScriptResult<Dynamic> {
        Ok(engine.read()?.tokens_per_second().map_or(Dynamic::UNIT, Dynamic::from))
    }

    /// Returns the model FLOPs utilization of the last 20 steps: the share, from 0 to 1, of what the
    /// devices of all ranks are capable of. `()` before the first step, and where that is not known, as
    /// on a CPU.
    #[rhai_fn(get = "mfu", return_raw, pure)]
    pub fn mfu(engine: &mut Engine) -> ScriptResult<Dynamic> {
        Ok(engine.read()?.mfu().map_or(Dynamic::UNIT, Dynamic::from))
    }
}
