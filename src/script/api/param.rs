//! `param`: the declaration of a parameter.
//!
//! The declarations are read before the recipe runs, see [`params`](crate::recipe::params); when it
//! runs there is nothing left to do.

use rhai::plugin::*;

/// Parameters of a recipe.
#[export_module]
pub mod api {
    use rhai::Map;

    /// Declares a parameter: its name and its default, which also gives its type.
    ///
    /// ```rhai
    /// param("steps", 100);
    /// print(P::steps);
    /// ```
    #[rhai_fn(name = "param")]
    pub fn declare(name: &str, default: Dynamic) {
        let _ = (name, default);
    }

    /// Declares a parameter with a help text, shown by `dsr run RECIPE --help`.
    ///
    /// ```rhai
    /// param("lr", 3e-4, "peak learning rate");
    /// ```
    #[rhai_fn(name = "param")]
    pub fn declare_with_help(name: &str, default: Dynamic, help: &str) {
        let _ = (name, default, help);
    }

    /// Declares a parameter with limits: `choices`, or `min` and `max`.
    ///
    /// ```rhai
    /// param("dropout", 0.1, "share of activations dropped", #{ min: 0, max: 1 });
    /// param("size", "small", "which model", #{ choices: ["small", "large"] });
    /// ```
    #[rhai_fn(name = "param")]
    pub fn declare_with_limits(name: &str, default: Dynamic, help: &str, limits: Map) {
        let _ = (name, default, help, limits);
    }
}
