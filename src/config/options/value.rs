//! A value of an option map, in whatever language it was written, and the types of single options.

use std::{any::Any, collections::BTreeMap, fmt, path::PathBuf, rc::Rc};

use super::{kind::Kind, wrong::Wrong};
use crate::config::suggest::nearest;

/// An option map.
pub type Map = BTreeMap<String, Value>;

/// A value of an option map.
#[derive(Debug, Clone)]
pub enum Value {
    /// `()` of a recipe, `null` of a file.
    Nothing,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Self>),
    /// A map inside the map.
    Map(Map),
    /// A value that only the recipe's language knows.
    Foreign(Foreign),
}

/// A handle or a function of the recipe's language.
#[derive(Clone)]
pub struct Foreign {
    /// Completes "found ...".
    pub description: String,
    /// The value itself.
    pub value: Rc<dyn Any>,
}

impl fmt::Debug for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

/// The type of a single option.
pub trait OptionValue: Default {
    /// Reads a value.
    ///
    /// # Errors
    /// The value is of another type, or out of the type's range.
    fn read(value: &Value) -> Result<Self, Wrong>;

    /// The kind of its values.
    fn kind() -> Kind;

    /// How a recipe writes it, where a default is worth showing.
    fn shown(&self) -> Option<String> {
        None
    }
}

impl OptionValue for f64 {
    fn read(value: &Value) -> Result<Self, Wrong> {
        value.as_number().ok_or_else(|| Wrong::no_number("a number", value))
    }

    fn kind() -> Kind {
        Kind::Number
    }

    fn shown(&self) -> Option<String> {
        let is_plain = self.fract() == 0.0 || (1e-3..1e6).contains(&self.abs());
        Some(if is_plain { format!("{self}") } else { format!("{self:e}") })
    }
}

impl OptionValue for i64 {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match *value {
            Value::Int(int) => Ok(int),
            Value::Float(f) if f.fract() == 0.0 && f.abs() < 9.0e15 => Ok(f as Self),
            _ => Err(Wrong::no_number("a whole number", value)),
        }
    }

    fn kind() -> Kind {
        Kind::Whole
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Narrower integers go through `i64`.
macro_rules! narrower {
    ($($int:ty),+) => {$(
        impl OptionValue for $int {
            fn read(value: &Value) -> Result<Self, Wrong> {
                let wide = i64::read(value)?;
                Self::try_from(wide).map_err(|_| {
                    let must = match wide < 0 && Self::MIN == 0 {
                        true => "0 or more".to_owned(),
                        false => format!("at most {}", Self::MAX),
                    };
                    Wrong::value(must, value)
                })
            }

            fn kind() -> Kind {
                Kind::Whole
            }

            fn shown(&self) -> Option<String> {
                Some(self.to_string())
            }
        }
    )+};
}

narrower!(u8, u16, u32, u64, usize, i32);

impl OptionValue for bool {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match *value {
            Value::Bool(is_on) => Ok(is_on),
            _ => Err(Wrong::kind("true or false", value)),
        }
    }

    fn kind() -> Kind {
        Kind::Bool
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl OptionValue for String {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match value {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(Wrong::kind("a string", value)),
        }
    }

    fn kind() -> Kind {
        Kind::Text
    }

    fn shown(&self) -> Option<String> {
        (!self.is_empty()).then(|| format!("{self:?}"))
    }
}

impl OptionValue for PathBuf {
    fn read(value: &Value) -> Result<Self, Wrong> {
        String::read(value).map(Self::from)
    }

    fn kind() -> Kind {
        Kind::Text
    }

    fn shown(&self) -> Option<String> {
        self.to_string_lossy().into_owned().shown()
    }
}

impl<T: OptionValue> OptionValue for Vec<T> {
    fn read(value: &Value) -> Result<Self, Wrong> {
        let Value::List(items) = value else { return Err(Wrong::kind("an array", value)) };
        let read = |(i, item)| T::read(item).map_err(|wrong: Wrong| wrong.within(i));
        items.iter().enumerate().map(read).collect()
    }

    fn kind() -> Kind {
        Kind::List
    }

    fn shown(&self) -> Option<String> {
        let items = self.iter().filter_map(T::shown).collect::<Vec<_>>();
        (!items.is_empty()).then(|| format!("[{}]", items.join(", ")))
    }
}

impl OptionValue for serde_json::Value {
    fn read(value: &Value) -> Result<Self, Wrong> {
        value.to_json().ok_or_else(|| Wrong::kind("plain data", value))
    }

    fn kind() -> Kind {
        Kind::Any
    }

    fn shown(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value {
    /// A number, written as a whole one or not.
    pub fn as_number(&self) -> Option<f64> {
        match *self {
            Self::Int(int) => Some(int as f64),
            Self::Float(float) => Some(float),
            _ => None,
        }
    }

    /// The type and the value, for "found ...".
    pub fn describe(&self) -> String {
        const SHOWN: usize = 40;
        match self {
            Self::Nothing => "nothing, ()".to_owned(),
            Self::Bool(is_on) => is_on.to_string(),
            Self::Int(int) => int.to_string(),
            Self::Float(float) => format!("{float:?}"),
            Self::Text(text) => {
                let mut shown: String = text.chars().take(SHOWN).collect();
                if shown.len() < text.len() {
                    shown.push_str("...");
                }
                format!("string {shown:?}")
            }
            Self::List(_) => "an array".to_owned(),
            Self::Map(_) => "a map".to_owned(),
            Self::Foreign(foreign) => foreign.description.clone(),
        }
    }

    /// Reads a value of the type that `like` has; [`Self::Nothing`] stands for any.
    pub(super) fn like(&self, like: &Self) -> Result<Self, Wrong> {
        match (like, self) {
            (Self::Nothing, _)
            | (Self::Bool(_), Self::Bool(_))
            | (Self::Text(_), Self::Text(_))
            | (Self::List(_), Self::List(_))
            | (Self::Map(_), Self::Map(_)) => Ok(self.clone()),
            (Self::Int(_), _) => i64::read(self).map(Self::Int),
            (Self::Float(_), _) => f64::read(self).map(Self::Float),
            (Self::Foreign(a), Self::Foreign(b)) if a.description == b.description => {
                Ok(self.clone())
            }
            (Self::Bool(_), _) => Err(Wrong::kind("true or false", self)),
            (Self::Text(_), _) => Err(Wrong::kind("a string", self)),
            _ => Err(Wrong::kind(like.describe(), self)),
        }
    }

    /// Plain data as JSON; `None` where a foreign value is inside.
    pub fn to_json(&self) -> Option<serde_json::Value> {
        Some(match self {
            Self::Nothing => serde_json::Value::Null,
            Self::Bool(is_on) => (*is_on).into(),
            Self::Int(int) => (*int).into(),
            Self::Float(float) => (*float).into(),
            Self::Text(text) => text.as_str().into(),
            Self::List(items) => {
                items.iter().map(Self::to_json).collect::<Option<Vec<_>>>()?.into()
            }
            Self::Map(map) => {
                let entry = |(key, value): (&String, &Self)| Some((key.clone(), value.to_json()?));
                map.iter().map(entry).collect::<Option<serde_json::Map<_, _>>>()?.into()
            }
            Self::Foreign(_) => return None,
        })
    }
}

impl From<serde_json::Value> for Value {
    fn from(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        match json {
            Json::Null => Self::Nothing,
            Json::Bool(is_on) => Self::Bool(is_on),
            Json::Number(n) => match n.as_i64() {
                Some(int) => Self::Int(int),
                None => Self::Float(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::Text(text),
            Json::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Json::Object(map) => Self::Map(map.into_iter().map(|(k, v)| (k, v.into())).collect()),
        }
    }
}

/// Reads one of a few words. Case does not matter.
///
/// # Errors
/// The value is no string, or another word.
pub fn read_word<T: Copy>(value: &Value, words: &[(&'static str, T)]) -> Result<T, Wrong> {
    let must = || format!("one of {}", quoted(words.iter().map(|(word, _)| *word)));
    let Value::Text(text) = value else { return Err(Wrong::kind(must(), value)) };
    if let Some((_, chosen)) = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
        return Ok(*chosen);
    }
    let near = nearest(text, words.iter().map(|(word, _)| *word));
    Err(Wrong::value(must(), value).hint(near.map(|near| format!("did you mean \"{near}\"?"))))
}

/// Words, quoted and separated by commas.
pub fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_narrow_with_a_reason() {
        let error = u8::read(&Value::Int(300)).unwrap_err().into_error("n");
        assert_eq!(error.message(), "`n` must be at most 255, found 300");
        let error = usize::read(&Value::Int(-1)).unwrap_err().into_error("n");
        assert_eq!(error.message(), "`n` must be 0 or more, found -1");
    }

    #[test]
    fn plain_data_goes_to_json_and_back() {
        let data = json!({ "a": [1, 2.5, null, true], "b": "x" });
        assert_eq!(Value::from(data.clone()).to_json(), Some(data));
    }
}
