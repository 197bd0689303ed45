//! The batch sizes of an `Engine` in scripts.

use rhai::plugin::*;

use super::engine::Engine;
use crate::recipe::error::ScriptResult;

/// The sizes of batches.
#[export_module]
pub mod api {
    /// Returns the rows of a batch of one process: as they were given, or, with `"auto"`, as they fit.
    ///
    /// ```rhai
    /// let engine = init_engine(model, #{ micro_batch_size: "auto", train_batch_size: 64 });
    /// let rows = dataset("dsr:austen").tokenize(tok).pack(16);
    /// let loader = rows.loader(#{ micro_batch_size: engine.micro_batch_size, endless: true });
    /// ```
    #[rhai_fn(get = "micro_batch_size", return_raw, pure)]
    pub fn micro_batch_size(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.config().micro_batch_size as i64)
    }

    /// Returns the micro batches of an optimizer step.
    #[rhai_fn(get = "gradient_accumulation_steps", return_raw, pure)]
    pub fn gradient_accumulation_steps(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.config().gradient_accumulation_steps as i64)
    }

    /// Returns the rows of an optimizer step, over all processes.
    #[rhai_fn(get = "train_batch_size", return_raw, pure)]
    pub fn train_batch_size(engine: &mut Engine) -> ScriptResult<i64> {
        Ok(engine.read()?.train_batch_size() as i64)
    }
}
