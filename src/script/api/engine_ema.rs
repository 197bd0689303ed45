//! The averaged weights of an `Engine` in scripts.

use rhai::{FnPtr, plugin::*};

use super::engine::Engine;
use crate::{recipe::error::ScriptResult, script::callback::Callback};

/// The exponential moving average of the weights.
#[export_module]
pub mod api {
    /// Calls a function while the engine's model has the averages of its weights, which `ema` of
    /// `init_engine` keeps, and returns what it returns. Evaluations, logits, generation and exports use
    /// them; a checkpoint is the usual one, and training is refused. Then the model has its own weights
    /// again, to the bit, also where the function fails. Every rank must call it.
    ///
    /// ```rhai
    /// let engine = init_engine(model, #{ micro_batch_size: 2, ema: #{ decay: 0.999 } });
    /// let loss = engine.with_ema(|| engine.evaluate(validation).loss);
    /// engine.with_ema(|| model.export_hf("exports/averaged"));
    /// ```
    // By value, so that the function can use the variable that it is called on.
    #[rhai_fn(return_raw)]
    pub fn with_ema(ctx: NativeCallContext, engine: Engine, run: FnPtr) -> ScriptResult<Dynamic> {
        let callback = Callback::new(&ctx, run)?;
        engine.write()?.begin_ema()?;
        let outcome = callback.call(());
        engine.write()?.end_ema()?;
        Ok(outcome?)
    }
}
