//! Reads the keys of a `config.json` by the table of its family.

use serde_json::{Map, Value};

use super::{
    activation::Activation,
    arithmetic::refusal,
    table::{Default, Key, KeyKind, Neutral, Table},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    foreign::brief,
};

/// A bound of sizes that no real model reaches, and no product of such sizes overflows.
const MOST_WIDE: i64 = 1 << 24;
/// The bound of numbers of layers.
const MOST_LAYERS: i64 = 10_000;

/// Keys of the file's own history, which an export writes anew, and of code, which dsr never runs.
const NOT_KEPT: [&str; 8] = [
    "model_type",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_name_or_path",
    "_commit_hash",
    "auto_map",
];

/// Keys of real files that resemble a known one and are none.
const NO_MISSPELLING: &[&str] = &[
    "n_ctx",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
    "cls_token_id",
    "mask_token_id",
    "eod_token_id",
    "boi_token_id",
    "eoi_token_id",
    "boi_token_index",
    "eoi_token_index",
    "bos_token_ids",
    "eos_token_ids",
    "pad_token_ids",
    "bos_token",
    "eos_token",
    "num_labels",
    "num_beams",
    "tie_encoder_decoder",
];

/// Keys of a file; transformers writes some hundreds. Each is compared with all that are known.
const MOST_KEYS: usize = 4096;

/// Reads one file.
pub(super) struct ConfigReader<'a> {
    map: &'a Map<String, Value>,
    table: &'static Table,
    origin: &'a str,
    faults: Vec<Error>,
}

impl<'a> ConfigReader<'a> {
    /// A reader of the file `origin`, whose content is `map`.
    pub(super) fn new(map: &'a Map<String, Value>, table: &'static Table, origin: &'a str) -> Self {
        Self { map, table, origin, faults: Vec::new() }
    }

    /// The values of all settings, and the keys that mean nothing to dsr.
    pub(super) fn read(mut self) -> Result<(Map<String, Value>, Map<String, Value>)> {
        let (keys, origin) = (self.map.len(), self.origin);
        if keys > MOST_KEYS {
            bail!(Code::ModelConfig, "{origin} has {keys} keys; at most {MOST_KEYS} are read");
        }
        let values = self.values();
        let kept = self.others();
        Error::all(self.faults).map_or(Ok((values, kept)), Err)
    }

    /// The values of all settings.
    fn values(&mut self) -> Map<String, Value> {
        let mut values = Map::new();
        let mut following = Vec::new();
        for key in self.table.keys {
            match (self.given(key), key.default) {
                (Some(value), _) => {
                    values.insert(key.name.to_owned(), value);
                }
                (None, Default::Same(other)) => following.push((key.name, other)),
                (None, default) => {
                    values.insert(key.name.to_owned(), default_value(default));
                }
            }
        }
        for (name, other) in following {
            let value = values.get(other).cloned().unwrap_or(Value::Null);
            values.insert(name.to_owned(), value);
        }
        values
    }

    /// The value of a setting in the file, under its name or an alias.
    fn given(&mut self, key: &'static Key) -> Option<Value> {
        let map = self.map;
        let mut found =
            self.table.names_of(key.name).filter_map(|name| Some((name, map.get(name)?)));
        let (name, value) = found.next()?;
        let value = whole(value);
        for (alias, other) in found.map(|(alias, other)| (alias, whole(other))) {
            if other != value {
                let (a, b) = (brief(&other), brief(&value));
                self.fault(&format!("{name} is {b} and {alias} is {a}: they mean the same"));
            }
        }
        if value.is_null() && matches!(key.default, Default::Same(_)) {
            return None;
        }
        match checked(key.kind, &value) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.fault(&format!("{name} must be {expected}"));
                None
            }
        }
    }

    /// The keys that are no settings. Faults are those that would make another model, and those that
    /// must be misspellings: passing over them would train another model, too.
    fn others(&mut self) -> Map<String, Value> {
        let mut kept = Map::new();
        for (key, value) in self.map {
            let name = key.as_str();
            if self.table.canonical(name).is_some() || NOT_KEPT.contains(&name) {
                continue;
            }
            if let Some((why, also_off)) = refusal(self.table, name) {
                if !Neutral::is_off(value, also_off) {
                    let value = brief(value);
                    self.fault(&format!("{name} is {value}, which dsr does not support: {why}"));
                }
            } else if let Some(meant) = self.misspelt(name) {
                let text = format!("{}: unknown key {name}", self.origin);
                let hint = format!("did you mean {meant}? if not, remove the key");
                self.faults.push(Error::new(Code::ModelConfig, text).hint(hint));
                continue;
            }
            kept.insert(key.clone(), value.clone());
        }
        kept
    }

    /// The known key that an unknown one must mean.
    fn misspelt(&self, name: &str) -> Option<&'static str> {
        if NO_MISSPELLING.contains(&name) {
            return None;
        }
        nearest(name, known_names(self.table))
    }

    /// Adds a fault of the file.
    fn fault(&mut self, text: &str) {
        self.faults.push(Error::new(Code::ModelConfig, format!("{}: {text}", self.origin)));
    }
}

/// The names that a family gives a meaning.
pub(super) fn known_names(table: &'static Table) -> impl Iterator<Item = &'static str> {
    table.names().chain(table.refused.iter().map(|refused| refused.key))
}

/// The value of a setting that stands on its own.
fn default_value(default: Default) -> Value {
    match default {
        Default::Int(value) => value.into(),
        Default::Number(value) => value.into(),
        Default::Flag(value) => value.into(),
        Default::Text(value) => value.into(),
        Default::Null | Default::Absent | Default::Same(_) => Value::Null,
    }
}

/// Whole floats are whole numbers.
fn whole(value: &Value) -> Value {
    match value.as_f64() {
        Some(f) if value.is_f64() && f.fract() == 0.0 && f.abs() < 9.0e15 => (f as i64).into(),
        _ => value.clone(),
    }
}

/// A value in the form of its kind.
fn checked(kind: KeyKind, value: &Value) -> Result<Value, String> {
    use KeyKind as K;
    let expected = match (kind, value) {
        (K::Structure, value) => return Ok(value.clone()),
        (K::OptionalSize | K::OptionalPositive | K::Token | K::Tokens, Value::Null) => {
            return Ok(Value::Null);
        }
        (K::Size, value) => return integer(value, (1, MOST_WIDE), "an integer"),
        (K::Layers, value) => return integer(value, (1, MOST_LAYERS), "an integer"),
        (K::Count, value) => return integer(value, (0, MOST_LAYERS), "an integer"),
        (K::OptionalSize, value) => return integer(value, (1, MOST_WIDE), "an integer or null"),
        (K::PositiveNumber | K::OptionalPositive | K::NonNegative | K::Probability, value) => {
            return number(kind, value);
        }
        (K::Token, value) => return token(value),
        // Where the key is there, transformers takes null for false.
        (K::OptionalFlag, Value::Null) => return Ok(false.into()),
        (K::Flag | K::OptionalFlag, Value::Bool(_)) => return Ok(value.clone()),
        (K::Flag, _) => "true or false".to_owned(),
        (K::OptionalFlag, _) => "true, false or null".to_owned(),
        (K::Tokens, Value::Array(items)) if items.iter().all(is_token) => return Ok(value.clone()),
        (K::Tokens, value) if is_token(value) => return Ok(value.clone()),
        (K::Tokens, _) => "a token id, a list of token ids or null".to_owned(),
        (K::Activation, value) => match value.as_str().and_then(Activation::named) {
            Some(activation) => return Ok(activation.name().into()),
            None => {
                let names: Vec<_> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
                format!("one of {}", names.join(", "))
            }
        },
        (K::OneOf(texts), value) => match value.as_str() {
            Some(text) if texts.contains(&text) => return Ok(value.clone()),
            _ => format!("one of {}", texts.join(", ")),
        },
    };
    Err(format!("{expected}, got {}", brief(value)))
}

/// An integer from `least` to `most`.
fn integer(value: &Value, (least, most): (i64, i64), expected: &str) -> Result<Value, String> {
    match value.as_i64() {
        Some(size) if (least..=most).contains(&size) => Ok(size.into()),
        Some(size) => Err(format!("from {least} to {most}, got {size}")),
        None => Err(format!("{expected}, got {}", brief(value))),
    }
}

/// A number, as a float.
fn number(kind: KeyKind, value: &Value) -> Result<Value, String> {
    let Some(x) = value.as_f64() else { return Err(format!("a number, got {}", brief(value))) };
    let (is_fine, expected) = match kind {
        KeyKind::Probability => ((0.0..1.0).contains(&x), "at least 0 and below 1"),
        KeyKind::PositiveNumber | KeyKind::OptionalPositive => {
            (x.is_finite() && x > 0.0, "positive")
        }
        _ => (x.is_finite() && x >= 0.0, "0 or more"),
    };
    if is_fine { Ok(x.into()) } else { Err(format!("{expected}, got {x}")) }
}

/// A token id.
fn token(value: &Value) -> Result<Value, String> {
    match value.as_i64() {
        // Some old files have it for no token.
        Some(-1) => Ok(Value::Null),
        Some(id) if id < 0 => Err(format!("a token id or null, got {id}")),
        Some(id) => Ok(id.into()),
        None => Err(format!("an integer or null, got {}", brief(value))),
    }
}

/// Whether the value is a token id.
fn is_token(value: &Value) -> bool {
    value.as_i64().is_some_and(|id| id >= 0)
}
