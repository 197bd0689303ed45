//! Script values as Rust values, with the coercions of dsr: whole floats are whole numbers, and
//! whole numbers are floats.

use std::{fmt::Display, ops::Bound, ops::RangeBounds};

use rhai::{Dynamic, Map};

use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
};

/// The outcome of reading one value.
pub(crate) type Read<T> = std::result::Result<T, Wrong>;

/// Why a value cannot be used. The caller knows its path.
#[derive(Debug)]
pub struct Wrong {
    code: Code,
    /// Completes "`path` must be ...".
    must: String,
    found: String,
    hint: Option<String>,
    /// Where inside the value: `[1]`.
    within: String,
}

impl Wrong {
    fn kind(must: impl Into<String>, found: &Dynamic) -> Self {
        let hint = None;
        let found = describe(found);
        Self { code: Code::WrongType, must: must.into(), found, hint, within: String::new() }
    }

    fn value(must: impl Into<String>, found: &Dynamic) -> Self {
        Self { code: Code::BadValue, ..Self::kind(must, found) }
    }

    /// The error for the option at `path`.
    pub fn into_error(self, path: &str) -> Error {
        let option = format!("{path}{}", self.within);
        self.into_argument_error(path).option(option)
    }

    /// The error for the argument called `name`, which is no option of a map.
    fn into_argument_error(self, name: &str) -> Error {
        let Self { code, must, found, hint, within } = self;
        let error = Error::new(code, format!("`{name}{within}` must be {must}, found {found}"));
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// A type that an option can have.
pub trait OptionValue: Sized {
    /// Reads a script value.
    fn read(value: &Dynamic) -> std::result::Result<Self, Wrong>;

    /// Any value, to go on with after a fault.
    fn stand_in() -> Self;
}

impl OptionValue for f64 {
    fn read(value: &Dynamic) -> Read<Self> {
        number(value).ok_or_else(|| not_a_number("a number", value))
    }

    fn stand_in() -> Self {
        0.0
    }
}

impl OptionValue for i64 {
    fn read(value: &Dynamic) -> Read<Self> {
        if let Ok(int) = value.as_int() {
            return Ok(int);
        }
        let whole = value.as_float().ok().filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15);
        whole.map(|f| f as Self).ok_or_else(|| not_a_number("a whole number", value))
    }

    fn stand_in() -> Self {
        0
    }
}

/// Narrower integers go through `i64`.
macro_rules! narrower {
    ($($int:ty),+) => {$(
        impl OptionValue for $int {
            fn read(value: &Dynamic) -> Read<Self> {
                let wide = i64::read(value)?;
                Self::try_from(wide).map_err(|_| {
                    let must = match wide < 0 && Self::MIN == 0 {
                        true => "0 or more".to_owned(),
                        false => format!("at most {}", Self::MAX),
                    };
                    Wrong::value(must, value)
                })
            }

            fn stand_in() -> Self {
                0
            }
        }
    )+};
}

narrower!(u8, u16, u32, u64, usize, i32);

impl OptionValue for bool {
    fn read(value: &Dynamic) -> Read<Self> {
        value.as_bool().map_err(|_| Wrong::kind("true or false", value))
    }

    fn stand_in() -> Self {
        false
    }
}

impl OptionValue for String {
    fn read(value: &Dynamic) -> Read<Self> {
        let text = value.as_immutable_string_ref().map(|s| s.as_str().to_owned());
        text.map_err(|_| Wrong::kind("a string", value))
    }

    fn stand_in() -> Self {
        Self::new()
    }
}

impl OptionValue for std::path::PathBuf {
    fn read(value: &Dynamic) -> Read<Self> {
        String::read(value).map(Self::from)
    }

    fn stand_in() -> Self {
        Self::new()
    }
}

impl<T: OptionValue> OptionValue for Vec<T> {
    fn read(value: &Dynamic) -> Read<Self> {
        let items = value.as_array_ref().map_err(|_| Wrong::kind("an array", value))?;
        let read = |(i, item)| {
            T::read(item)
                .map_err(|wrong| Wrong { within: format!("[{i}]{}", wrong.within), ..wrong })
        };
        items.iter().enumerate().map(read).collect()
    }

    fn stand_in() -> Self {
        Self::new()
    }
}

impl OptionValue for serde_json::Value {
    fn read(value: &Dynamic) -> Read<Self> {
        to_json(value).map_err(|_| Wrong::kind("plain data", value))
    }

    fn stand_in() -> Self {
        Self::Null
    }
}

/// Reads the argument of a function that is called `name` in its signature.
pub(crate) fn argument<T: OptionValue>(name: &str, value: &Dynamic) -> Result<T> {
    T::read(value).map_err(|wrong| wrong.into_argument_error(name))
}

/// A number that may be written as an int or as a float.
pub(crate) fn number(value: &Dynamic) -> Option<f64> {
    value.as_float().or_else(|_| value.as_int().map(|i| i as f64)).ok()
}

fn not_a_number(must: &str, value: &Dynamic) -> Wrong {
    let wrong = Wrong::kind(must, value);
    let text = value.as_immutable_string_ref().ok().map(|s| s.to_string());
    let hint = text.filter(|s| s.parse::<f64>().is_ok());
    Wrong { hint: hint.map(|s| format!("write {s}, without quotes")), ..wrong }
}

/// Reads one of a few words.
pub(crate) fn read_choice<T: Copy>(value: &Dynamic, choices: &[(&'static str, T)]) -> Read<T> {
    let Ok(text) = value.as_immutable_string_ref() else {
        return Err(Wrong::kind(format!("one of {}", words(choices)), value));
    };
    if let Some((_, chosen)) = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(&text)) {
        return Ok(*chosen);
    }
    let near = nearest(&text, choices.iter().map(|(word, _)| *word));
    let hint = near.map(|near| format!("did you mean \"{near}\"?"));
    Err(Wrong { hint, ..Wrong::value(format!("one of {}", words(choices)), value) })
}

/// The words of a choice, quoted and separated by commas.
pub(crate) fn words<T>(choices: &[(&'static str, T)]) -> String {
    choices.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// A range in words.
pub(crate) fn limits<T: Display>(range: &impl RangeBounds<T>) -> String {
    use Bound::{Excluded, Included, Unbounded};
    match (range.start_bound(), range.end_bound()) {
        (Included(a), Included(b)) => format!("from {a} to {b}"),
        (Included(a), Excluded(b)) => format!("at least {a} and below {b}"),
        (Included(a), Unbounded) => format!("{a} or more"),
        (Excluded(a), Included(b)) => format!("above {a} and at most {b}"),
        (Excluded(a), Excluded(b)) => format!("above {a} and below {b}"),
        (Excluded(a), Unbounded) => format!("above {a}"),
        (Unbounded, Included(b)) => format!("at most {b}"),
        (Unbounded, Excluded(b)) => format!("below {b}"),
        (Unbounded, Unbounded) => "a number".to_owned(),
    }
}

/// The type and value of a script value, for "found ...".
pub(crate) fn describe(value: &Dynamic) -> String {
    const SHOWN: usize = 40;
    match value.type_name() {
        "()" => "nothing, ()".to_owned(),
        "bool" | "i64" => value.to_string(),
        "f64" => format!("{value:?}"),
        "string" => {
            let text = value.to_string();
            let mut shown: String = text.chars().take(SHOWN).collect();
            if shown.len() < text.len() {
                shown.push_str("...");
            }
            format!("string {shown:?}")
        }
        "array" => "an array".to_owned(),
        "map" => "a map".to_owned(),
        "Fn" => "a function".to_owned(),
        other => short_type(other).to_owned(),
    }
}

/// Reads a value of the type that `like` has; `()` stands for any.
pub(crate) fn read_like(found: &Dynamic, like: &Dynamic) -> Read<Dynamic> {
    match like.type_name() {
        "()" => Ok(found.clone()),
        "i64" => i64::read(found).map(Dynamic::from),
        "f64" => f64::read(found).map(Dynamic::from),
        kind if kind == found.type_name() => Ok(found.clone()),
        "bool" => Err(Wrong::kind("true or false", found)),
        "string" => Err(Wrong::kind("a string", found)),
        _ => Err(Wrong::kind(describe(like), found)),
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

/// JSON as script data.
pub fn from_json(value: serde_json::Value) -> Dynamic {
    use serde_json::Value;
    match value {
        Value::Null => Dynamic::UNIT,
        Value::Bool(b) => b.into(),
        Value::Number(n) => match n.as_i64() {
            Some(int) => int.into(),
            None => n.as_f64().unwrap_or(f64::NAN).into(),
        },
        Value::String(s) => s.into(),
        Value::Array(items) => Dynamic::from_array(items.into_iter().map(from_json).collect()),
        Value::Object(map) => Dynamic::from_map(
            map.into_iter().map(|(k, v)| (k.into(), from_json(v))).collect::<Map>(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_narrow_with_a_reason() {
        let error = u8::read(&Dynamic::from(300_i64)).unwrap_err().into_error("n");
        assert_eq!(error.message(), "`n` must be at most 255, found 300");
        let error = usize::read(&Dynamic::from(-1_i64)).unwrap_err().into_error("n");
        assert_eq!(error.message(), "`n` must be 0 or more, found -1");
    }

    #[test]
    fn json_goes_both_ways() {
        let json = serde_json::json!({"a": [1, 2.5, null, true], "b": "x"});
        assert_eq!(to_json(&from_json(json.clone())).unwrap(), json);
        let precise = from_json(serde_json::json!({ "loss": 6.2687934637 }));
        assert_eq!(to_json(&precise).unwrap().to_string(), r#"{"loss":6.2687934637}"#);
    }
}
