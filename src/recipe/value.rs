//! Script values as values of options, and as Rust values.

use std::rc::Rc;

use rhai::{Array, Dynamic, Map};

use crate::{
    config::options::{self, Foreign, OptionValue, Value},
    error::{Code, Error, Result},
    foreign,
};

/// A map of a script as an option map.
pub fn option_map(map: &Map) -> options::Map {
    map.iter().map(|(key, value)| (key.to_string(), option_value(value))).collect()
}

/// A script value as a value of an option.
pub(crate) fn option_value(value: &Dynamic) -> Value {
    if let Ok(items) = value.as_array_ref() {
        return Value::List(items.iter().map(option_value).collect());
    }
    match value.as_map_ref() {
        Ok(map) => Value::Map(option_map(&map)),
        Err(_) => single(value),
    }
}

/// A value that is no array and no map.
fn single(value: &Dynamic) -> Value {
    match value.type_name() {
        "()" => Value::Nothing,
        "bool" => Value::Bool(value.as_bool().unwrap_or_default()),
        "i64" => Value::Int(value.as_int().unwrap_or_default()),
        "f64" => Value::Float(value.as_float().unwrap_or_default()),
        "string" => Value::Text(value.to_string()),
        "Fn" => foreign("a function", value),
        other => foreign(short_type(other), value),
    }
}

fn foreign(description: &str, value: &Dynamic) -> Value {
    Value::Foreign(Foreign { description: description.to_owned(), value: Rc::new(value.clone()) })
}

/// A value of an option as a script value.
pub(crate) fn of_option(value: Value) -> Dynamic {
    match value {
        Value::Nothing => Dynamic::UNIT,
        Value::Bool(is_on) => is_on.into(),
        Value::Int(int) => int.into(),
        Value::Float(float) => float.into(),
        Value::Text(text) => text.into(),
        Value::List(items) => {
            Dynamic::from_array(items.into_iter().map(of_option).collect::<Array>())
        }
        Value::Map(map) => Dynamic::from_map(map_of_options(map)),
        Value::Foreign(foreign) => of_foreign(&foreign),
    }
}

/// An option map as a map of a script.
pub(crate) fn map_of_options(map: options::Map) -> Map {
    map.into_iter().map(|(key, value)| (key.into(), of_option(value))).collect()
}

/// The script value that an option keeps.
pub(crate) fn of_foreign(foreign: &Foreign) -> Dynamic {
    foreign.value.downcast_ref::<Dynamic>().cloned().unwrap_or_default()
}

/// Reads the argument of a function that is called `name` in its signature.
pub(crate) fn argument<T: OptionValue>(name: &str, value: &Dynamic) -> Result<T> {
    T::read(&option_value(value)).map_err(|wrong| wrong.into_argument_error(name))
}

/// A number that may be written as an int or as a float.
pub(crate) fn number(value: &Dynamic) -> Option<f64> {
    value.as_float().or_else(|_| value.as_int().map(|i| i as f64)).ok()
}

/// The type and value of a script value, for "found ...".
pub(crate) fn describe(value: &Dynamic) -> String {
    match value.type_name() {
        "array" => Value::List(Vec::new()).describe(),
        "map" => Value::Map(options::Map::new()).describe(),
        _ => single(value).describe(),
    }
}

/// Whether a value is of a Rust type that dsr added to the script's own. It must not be locked.
pub(crate) fn is_handle(value: &Dynamic) -> bool {
    // Rhai's own types have short names.
    value.type_name().contains("::")
}

/// A Rust type's own name, without its path.
pub(crate) fn short_type(path: &str) -> &str {
    path.trim_end_matches('>').rsplit("::").next().unwrap_or(path)
}

/// Plain script data as JSON. Handles and functions are refused.
pub fn to_json(value: &Dynamic) -> Result<serde_json::Value> {
    rhai::serde::from_dynamic(value).map_err(|_| {
        let found = describe(value);
        Error::new(Code::WrongType, format!("{found} holds a value that has no JSON form"))
            .hint("maps, arrays, numbers, strings, true, false and () can be written as JSON")
    })
}

/// Script data as a line of JSON, which reads the same where it is printed.
pub fn json_text(value: &Dynamic) -> Result<String> {
    Ok(foreign::json(&to_json(value)?.to_string()))
}

/// JSON as script data.
pub fn from_json(value: serde_json::Value) -> Dynamic {
    of_option(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_goes_both_ways() {
        let json = serde_json::json!({"a": [1, 2.5, null, true], "b": "x"});
        assert_eq!(to_json(&from_json(json.clone())).unwrap(), json);
        let precise = from_json(serde_json::json!({ "loss": 6.2687934637 }));
        assert_eq!(to_json(&precise).unwrap().to_string(), r#"{"loss":6.2687934637}"#);
    }

    #[test]
    fn what_only_a_script_knows_goes_through_options() {
        let map: Map = rhai::Engine::new().eval("#{ f: |x| x, list: ['c', 1] }").unwrap();
        let found = map_of_options(option_map(&map));
        assert!(found["f"].is_fnptr());
        assert_eq!(found["list"].as_array_ref().unwrap()[0].as_char(), Ok('c'));
        assert_eq!(describe(&found["f"]), "a function");
    }
}
