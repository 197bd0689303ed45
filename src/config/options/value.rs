//! A value of an option map, in whatever language it was written.

use std::{any::Any, collections::BTreeMap, fmt, rc::Rc};

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

/// Words, quoted and separated by commas.
pub fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_data_goes_to_json_and_back() {
        let data = json!({ "a": [1, 2.5, null, true], "b": "x" });
        assert_eq!(Value::from(data.clone()).to_json(), Some(data));
    }
}
