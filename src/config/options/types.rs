//! The types of single options.

use std::path::PathBuf;

use super::{
    kind::Kind,
    value::{Value, quoted},
    wrong::Wrong,
};
use crate::config::{suggest::nearest, words::alike};

/// The word for a value that fits the model and the device.
pub const AUTO: &str = "auto";

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
        Some(format!("{self:?}"))
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

/// A value, or an array of such values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<T: OptionValue> OptionValue for OneOrMany<T> {
    fn read(value: &Value) -> Result<Self, Wrong> {
        match value {
            Value::List(_) => Vec::read(value).map(Self),
            _ => T::read(value).map(|one| Self(vec![one])).map_err(Wrong::or_list),
        }
    }

    fn kind() -> Kind {
        Kind::Or(Box::new(T::kind()), Box::new(Kind::List))
    }

    fn shown(&self) -> Option<String> {
        match self.0.as_slice() {
            [one] => one.shown(),
            _ => self.0.shown(),
        }
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

/// Reads a value of the type that `like` has; [`Value::Nothing`] stands for any.
pub(super) fn read_like(found: &Value, like: &Value) -> Result<Value, Wrong> {
    match (like, found) {
        (Value::Nothing, _)
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Text(_), Value::Text(_))
        | (Value::List(_), Value::List(_))
        | (Value::Map(_), Value::Map(_)) => Ok(found.clone()),
        (Value::Int(_), _) => i64::read(found).map(Value::Int),
        (Value::Float(_), _) => f64::read(found).map(Value::Float),
        (Value::Foreign(a), Value::Foreign(b)) if a.description == b.description => {
            Ok(found.clone())
        }
        (Value::Bool(_), _) => Err(Wrong::kind("true or false", found)),
        (Value::Text(_), _) => Err(Wrong::kind("a string", found)),
        _ => Err(Wrong::kind(like.describe(), found)),
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
    let known = || words.iter().map(|(word, _)| *word);
    let near = alike(text, known()).or_else(|| nearest(text, known()));
    Err(Wrong::value(must(), value).hint(near.map(|near| format!("did you mean \"{near}\"?"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_narrow_with_a_reason() {
        let error = u8::read(&Value::Int(300)).unwrap_err().into_error("n");
        assert_eq!(error.message(), "`n` must be at most 255, found 300");
        let error = usize::read(&Value::Int(-1)).unwrap_err().into_error("n");
        assert_eq!(error.message(), "`n` must be 0 or more, found -1");
    }
}
