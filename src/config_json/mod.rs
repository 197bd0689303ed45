//! The `config.json` of all model families: read strictly by a table, written for transformers.
//!
//! A key that changes what the model computes is honoured or refused. A key that merely describes
//! (summaries, labels, versions, whatever a file of the hub may hold) is kept and written back, unless
//! its name is so close to a known one that it must be a misspelling: passing over that would train
//! another model.

mod activation;
mod arithmetic;
mod reader;
mod table;

use serde_json::{Map, Value};

pub(crate) use self::activation::Activation;
use self::reader::{ConfigReader, known_names};
pub(crate) use self::table::{Default, Key, KeyKind, Neutral, Refused, Table};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    foreign::brief,
    fs::{self, Place},
};

/// The file's name in a model's directory.
pub(crate) const FILE_NAME: &str = "config.json";

/// The settings of a model: every key of its table has a value.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    table: &'static Table,
    values: Map<String, Value>,
    /// Keys that mean nothing to dsr, for [`Config::to_json`].
    kept: Map<String, Value>,
    /// Names the settings in errors.
    origin: String,
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.table.model_type == other.table.model_type
            && self.values == other.values
            && self.kept == other.kept
    }
}

impl Config {
    /// Reads the content of a `config.json`; `origin` names it in errors.
    pub(crate) fn read(
        map: &Map<String, Value>,
        table: &'static Table,
        origin: &str,
    ) -> Result<Self> {
        if let Some(other) = map.get("model_type").filter(|&value| value != table.model_type) {
            bail!(
                Code::ModelConfig,
                "{origin} describes a model of the type {}; dsr supports \"{}\"",
                brief(other),
                table.model_type
            );
        }
        let (values, kept) = ConfigReader::new(map, table, origin).read()?;
        Ok(Self { table, values, kept, origin: origin.to_owned() })
    }

    /// Reads settings that are JSON in the text of dsr itself, as those of a published size.
    pub(crate) fn from_text(text: &str, table: &'static Table, origin: &str) -> Result<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Self::read(&map, table, origin),
            _ => bail!(Code::Internal, "the settings of {origin} are no JSON object"),
        }
    }

    /// The content of a `config.json` for the family's class in transformers, with float32 weights
    /// beside it.
    ///
    /// Nulls of keys that are [absent](Default::Absent) by default are left out.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut map = self.kept.clone();
        map.insert("architectures".to_owned(), vec![self.table.architecture].into());
        map.insert("model_type".to_owned(), self.table.model_type.into());
        map.insert("dtype".to_owned(), "float32".into());
        for key in self.table.keys {
            let is_absent = matches!(key.default, Default::Absent);
            if let Some(value) = self.values.get(key.name)
                && !(is_absent && value.is_null())
            {
                map.insert(key.name.to_owned(), value.clone());
            }
        }
        map.sort_keys();
        map
    }

    /// These settings with others in their place; `owner` names the overrides in errors.
    ///
    /// A setting that is the same as another by default, and still is, follows that one's override.
    pub(crate) fn with(&self, overrides: Vec<(String, Value)>, owner: &str) -> Result<Self> {
        let mut map = self.to_json();
        for key in self.table.keys {
            if let Default::Same(other) = key.default
                && self.values.get(key.name) == self.values.get(other)
            {
                map.remove(key.name);
            }
        }
        let mut faults = Vec::new();
        let mut replaced = Vec::new();
        for (name, value) in overrides {
            let Some(key) = self.table.canonical(&name) else {
                faults.push(self.unknown(&name, owner));
                continue;
            };
            // A second name of one setting stands beside the first, for the reader to compare.
            let place = if replaced.contains(&key) { name } else { key.to_owned() };
            replaced.push(key);
            map.insert(place, value);
        }
        Error::all(faults).map_or_else(|| Self::read(&map, self.table, owner), Err)
    }

    /// The fault of an override that is no setting.
    fn unknown(&self, name: &str, owner: &str) -> Error {
        let family = self.table.model_type;
        let text = format!("{owner}: a model of the type \"{family}\" has no setting {name}");
        let e = Error::new(Code::UnknownOption, text);
        match nearest(name, known_names(self.table)) {
            Some(meant) => e.hint(format!("did you mean {meant}?")),
            None => {
                let names: Vec<_> = self.table.keys.iter().map(|key| key.name).collect();
                e.hint(format!("its settings are {}", names.join(", ")))
            }
        }
    }

    /// The table that the settings belong to.
    pub(crate) fn table(&self) -> &'static Table {
        self.table
    }

    /// The keys of the file that mean nothing to dsr.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> &Map<String, Value> {
        &self.kept
    }
}

/// The values of settings.
impl Config {
    /// A value as it stands in the file.
    pub(crate) fn value(&self, key: &'static str) -> Result<&Value> {
        self.values.get(key).ok_or_else(|| self.internal(key))
    }

    /// An integer.
    pub(crate) fn int(&self, key: &'static str) -> Result<i64> {
        self.converted(key, Value::as_i64)
    }

    /// An integer, or nothing.
    pub(crate) fn optional_int(&self, key: &'static str) -> Result<Option<i64>> {
        self.converted(key, |value| optional(value, Value::as_i64))
    }

    /// A number.
    pub(crate) fn number(&self, key: &'static str) -> Result<f64> {
        self.converted(key, Value::as_f64)
    }

    /// A number, or nothing.
    pub(crate) fn optional_number(&self, key: &'static str) -> Result<Option<f64>> {
        self.converted(key, |value| optional(value, Value::as_f64))
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &'static str) -> Result<bool> {
        self.converted(key, Value::as_bool)
    }

    /// True, false, or nothing.
    pub(crate) fn optional_flag(&self, key: &'static str) -> Result<Option<bool>> {
        self.converted(key, |value| optional(value, Value::as_bool))
    }

    /// A text.
    pub(crate) fn text(&self, key: &'static str) -> Result<&str> {
        self.converted(key, Value::as_str)
    }

    /// An activation.
    pub(crate) fn activation(&self, key: &'static str) -> Result<Activation> {
        self.converted(key, |value| Activation::named(value.as_str()?))
    }

    /// A token id, or nothing; of several the first.
    pub(crate) fn token(&self, key: &'static str) -> Result<Option<i64>> {
        Ok(self.tokens(key)?.first().copied())
    }

    /// The row of the embedding that has no gradient, as transformers makes it of `pad_token_id`.
    pub(crate) fn padding_idx(&self) -> Result<Option<i64>> {
        let (id, vocab) = (self.token("pad_token_id")?, self.int("vocab_size")?);
        match id.filter(|&id| id >= vocab) {
            None => Ok(id),
            Some(id) => Err(self.refusal(vec![format!(
                "pad_token_id is {id}, and vocab_size {vocab}: the embedding has no such row"
            )])),
        }
    }

    /// Token ids; none where the value is null.
    pub(crate) fn tokens(&self, key: &'static str) -> Result<Vec<i64>> {
        self.converted(key, |value| match value {
            Value::Null => Some(Vec::new()),
            Value::Array(ids) => ids.iter().map(Value::as_i64).collect(),
            id => Some(vec![id.as_i64()?]),
        })
    }

    /// A value as Rust's.
    fn converted<'a, T>(
        &'a self,
        key: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T> {
        convert(self.value(key)?).ok_or_else(|| self.internal(key))
    }

    /// The error of settings that are fine alone and do not fit together.
    pub(crate) fn refusal(&self, faults: Vec<String>) -> Error {
        let fault = |text| Error::new(Code::ModelConfig, format!("{}: {text}", self.origin));
        let nothing = || Error::new(Code::Internal, "a refusal without a fault");
        Error::all(faults.into_iter().map(fault).collect()).unwrap_or_else(nothing)
    }

    /// [`Config::refusal`], if there is a fault.
    pub(crate) fn refuse(&self, faults: Vec<String>) -> Result<()> {
        if faults.is_empty() { Ok(()) } else { Err(self.refusal(faults)) }
    }

    /// The error of a key that the table does not have.
    pub(crate) fn internal(&self, key: &str) -> Error {
        let family = self.table.model_type;
        Error::new(Code::Internal, format!("the table of {family} has no such key: {key}"))
    }
}

/// A value, or nothing for null; `None` where it cannot be converted.
fn optional<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Option<Option<T>> {
    if value.is_null() { Some(None) } else { convert(value).map(Some) }
}

/// Reads the JSON object of a `config.json`, or of the one in a directory, with its name for errors.
pub(crate) fn read_file(dir_or_file: impl Into<Place>) -> Result<(Map<String, Value>, String)> {
    let dir_or_file = dir_or_file.into();
    let is_dir = dir_or_file.is_dir();
    let path = if is_dir { dir_or_file.join(FILE_NAME) } else { dir_or_file.clone() };
    if !path.exists() {
        let what = format!("no {FILE_NAME} at {}", dir_or_file.display());
        return Err(Error::new(Code::ModelConfig, what)
            .hint(format!("a model is a directory with {FILE_NAME} and model.safetensors")));
    }
    let origin = path.display().to_string();
    match serde_json::from_slice(&fs::read_json(&path)?) {
        Ok(Value::Object(map)) => Ok((map, origin)),
        Ok(_) => bail!(Code::ModelConfig, "{origin} must hold one JSON object"),
        Err(e) => bail!(Code::ModelConfig, "{origin} is not valid JSON: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::write, path::Path};

    use serde_json::json;

    use super::*;

    #[test]
    fn a_directory_or_a_file_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let refused = |at: &Path| {
            let e = read_file(at).unwrap_err();
            assert_eq!(e.code(), Code::ModelConfig);
            e.to_string()
        };
        assert!(refused(dir.path()).starts_with("no config.json at "));
        write(&path, "{\"n_layer\": 2,").unwrap();
        assert!(refused(&path).contains("config.json is not valid JSON: EOF"));
        write(&path, "[]").unwrap();
        assert!(refused(&path).ends_with("must hold one JSON object"));
        write(&path, "{\"n_layer\": 2}").unwrap();
        for place in [dir.path(), &path] {
            let (map, origin) = read_file(place).unwrap();
            assert_eq!((&map["n_layer"], origin), (&json!(2), path.display().to_string()));
        }
    }
}
