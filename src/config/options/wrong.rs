//! Why a value cannot be an option's, and the words for it.

use super::value::Value;
use crate::error::{Code, Error};

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
    /// A value of another type.
    pub fn kind(must: impl Into<String>, found: &Value) -> Self {
        let (hint, within) = (None, String::new());
        Self { code: Code::WrongType, must: must.into(), found: found.describe(), hint, within }
    }

    /// A value of the right type that is none of those that may be.
    pub fn value(must: impl Into<String>, found: &Value) -> Self {
        Self { code: Code::BadValue, ..Self::kind(must, found) }
    }

    /// A value that is no number, perhaps because it stands in quotes.
    pub(in crate::config) fn no_number(must: &str, found: &Value) -> Self {
        let hint = match found {
            Value::Text(text) if text.parse::<f64>().is_ok() => {
                Some(format!("write {text}, without quotes"))
            }
            _ => None,
        };
        Self::kind(must, found).hint(hint)
    }

    /// Shows the value in another way.
    pub fn shown(self, found: String) -> Self {
        Self { found, ..self }
    }

    /// The same where a list of such values would do as well.
    pub(super) fn or_list(self) -> Self {
        let must = format!("{}, or an array of such values", self.must);
        Self { must, ..self }
    }

    pub(super) fn hint(self, hint: Option<String>) -> Self {
        Self { hint, ..self }
    }

    /// The fault of a list, at its item `i`.
    pub fn within(self, i: usize) -> Self {
        Self { within: format!("[{i}]{}", self.within), ..self }
    }

    /// The error for the option at `path`.
    pub fn into_error(self, path: &str) -> Error {
        let option = format!("{path}{}", self.within);
        self.into_argument_error(path).option(option)
    }

    /// The error for the argument called `name`, which is no option of a map.
    pub fn into_argument_error(self, name: &str) -> Error {
        let Self { code, must, found, hint, within } = self;
        let message = format!("`{name}{within}` must be {must}, found {found}");
        Error::new(code, message).hint_if(hint)
    }
}
