//! `to_json` and `parse_json`: plain script data as text.
//!
//! They replace Rhai's own, which writes strings with Rust's escapes and `NaN` as it is: not JSON.

use rhai::{Dynamic, plugin::*};

use crate::{
    error::{Code, Error},
    recipe::{error::ScriptResult, value},
};

/// Plain data as JSON.
#[export_module]
pub mod api {
    /// Writes a map, an array, a number, a string, a truth value or `()` as JSON, with every digit
    /// that a number has. Numbers that are not finite are written as null.
    ///
    /// ```rhai
    /// print(#{ loss: 6.2687934637 }.to_json());       // {"loss":6.2687934637}
    /// ```
    #[rhai_fn(return_raw)]
    pub fn to_json(data: Dynamic) -> ScriptResult<String> {
        Ok(value::json_text(&data)?)
    }

    /// Writes a map as JSON.
    #[rhai_fn(name = "to_json", return_raw, pure)]
    pub fn map_to_json(data: &mut rhai::Map) -> ScriptResult<String> {
        Ok(value::json_text(&Dynamic::from_map(data.clone()))?)
    }

    /// Reads JSON.
    ///
    /// * `text` - one JSON value
    ///
    /// ```rhai
    /// let config = parse_json(`{"n_layer": 12}`);
    /// print(config.n_layer);                          // 12
    /// ```
    #[rhai_fn(return_raw)]
    pub fn parse_json(text: &str) -> ScriptResult<Dynamic> {
        let json = serde_json::from_str(text)
            .map_err(|e| Error::new(Code::BadValue, format!("not valid JSON: {e}")))?;
        Ok(value::from_json(json))
    }
}
