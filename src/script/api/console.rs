//! `log`: named values on one line. (`print` and `debug` are Rhai's own.)

use rhai::{Map, plugin::*};

use crate::{recipe::error::ScriptResult, script::host};

/// Output for people.
#[export_module]
pub mod api {
    /// Prints named values on one line: `step` first, then the rest by name.
    ///
    /// * `values` - a map of names and plain values
    ///
    /// ```rhai
    /// log(#{ step: 10, loss: 6.25 });     // step 10  loss 6.25
    /// ```
    #[rhai_fn(return_raw)]
    pub fn log(ctx: NativeCallContext, values: Map) -> ScriptResult<()> {
        host::of(&ctx)?.output.print(&line(&values));
        Ok(())
    }
}

fn line(values: &Map) -> String {
    let step = values.iter().filter(|(key, _)| *key == "step");
    let rest = values.iter().filter(|(key, _)| *key != "step");
    step.chain(rest).map(|(key, v)| format!("{key} {v}")).collect::<Vec<_>>().join("  ")
}
