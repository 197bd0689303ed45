//! `log`: named values on one line. (`print` and `debug` are Rhai's own.)

use rhai::{Map, plugin::*};

use crate::{recipe::error::ScriptResult, script::host};

/// Output for people.
#[export_module]
pub mod api {
    /// Prints named values on one line: `step` first, then the rest by name; floats with six digits.
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
    step.chain(rest).map(|(key, v)| format!("{key} {}", shown(v))).collect::<Vec<_>>().join("  ")
}

/// A value with as many digits as say something.
fn shown(value: &Dynamic) -> String {
    match value.as_float() {
        Ok(number) if number.is_finite() => {
            let rounded: f64 = format!("{number:.5e}").parse().unwrap_or(number);
            Dynamic::from_float(rounded).to_string()
        }
        _ => value.to_string(),
    }
}
