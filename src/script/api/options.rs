//! The strict reader of options for functions that recipes define themselves.

use rhai::{Map, plugin::*};

use crate::{
    error::Result,
    recipe::{error::ScriptResult, options, value},
};

/// Options of a recipe's own functions.
#[export_module]
pub mod api {
    /// Reads the options of a function that a recipe defines: the `given` values over those of `defaults`.
    /// A name that `defaults` does not have is refused with the nearest name, and so is a value of another
    /// type than the default's; a default of `()` takes any type. Maps inside are read the same way.
    ///
    /// ```rhai
    /// fn warm(options) {
    ///     let o = read_options("warm", options, #{ steps: 100, peak: 1e-3 });
    ///     o.peak / o.steps
    /// }
    /// print(warm(#{ peak: 1 }));                      // 0.01
    /// ```
    #[rhai_fn(return_raw)]
    pub fn read_options(owner: &str, given: Map, defaults: Map) -> ScriptResult<Map> {
        Ok(super::read(owner, &given, &defaults, &Map::new())?)
    }

    /// Reads options of which some have no default: `required` has a value of the type that each must
    /// have.
    ///
    /// ```rhai
    /// fn cut(options) {
    ///     read_options("cut", options, #{ keep_rest: true }, #{ seq_len: 128 })
    /// }
    /// print(cut(#{ seq_len: 64 }).keep_rest);         // true
    /// ```
    #[rhai_fn(name = "read_options", return_raw)]
    pub fn read_options_required(
        owner: &str,
        given: Map,
        defaults: Map,
        required: Map,
    ) -> ScriptResult<Map> {
        Ok(super::read(owner, &given, &defaults, &required)?)
    }
}

/// Reads the map as `read_options` does.
pub(crate) fn read(owner: &str, given: &Map, defaults: &Map, required: &Map) -> Result<Map> {
    options::read(owner, given, |o| {
        let optional = defaults.iter().map(|(key, like)| (key, like, false));
        let required = required.iter().map(|(key, like)| (key, like, true));
        let read = |(key, like, is_required): (&rhai::Identifier, &Dynamic, bool)| {
            let found = o.like(key, &value::option_value(like), is_required);
            (key.clone(), value::of_option(found))
        };
        optional.chain(required).map(read).collect()
    })
}
