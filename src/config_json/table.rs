//! The table of a model family: the settings of its `config.json`, their kinds and defaults.

use serde_json::Value;

/// The settings of a family, as its configuration class in transformers has them.
#[derive(Debug)]
pub(crate) struct Table {
    /// The family's name in `config.json`.
    pub(crate) model_type: &'static str,
    /// The class of transformers that an export is for.
    pub(crate) architecture: &'static str,
    /// The settings, in the order in which their faults are told.
    pub(crate) keys: &'static [Key],
    /// Other names of settings, each with the name in `keys`: the `attribute_map` of transformers,
    /// and names of older files.
    pub(crate) aliases: &'static [(&'static str, &'static str)],
    /// Keys that make another model than dsr's.
    pub(crate) refused: &'static [Refused],
}

impl Table {
    /// The setting of this name.
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The names that may stand for the setting `key`, its own first.
    pub(super) fn names_of(&self, key: &'static str) -> impl Iterator<Item = &'static str> {
        let aliases = self.aliases.iter().filter(move |(_, known)| *known == key);
        std::iter::once(key).chain(aliases.map(|&(alias, _)| alias))
    }

    /// The names of all settings, and the aliases.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        let (keys, aliases) = (self.keys, self.aliases);
        keys.iter().map(|key| key.name).chain(aliases.iter().map(|&(alias, _)| alias))
    }

    /// The name in `keys` of a setting that may be called by an alias.
    pub(crate) fn canonical(&self, name: &str) -> Option<&'static str> {
        let alias = self.aliases.iter().find(|(alias, _)| *alias == name);
        alias.map(|&(_, key)| key).or_else(|| Some(self.key(name)?.name))
    }
}

/// One setting of a family.
#[derive(Debug)]
pub(crate) struct Key {
    /// The name in `config.json`.
    pub(crate) name: &'static str,
    /// The values that it may have.
    pub(crate) kind: KeyKind,
    /// Its value where the file has none.
    pub(crate) default: Default,
}

/// The values that a setting may have.
#[derive(Debug, Clone, Copy)]
pub(crate) enum KeyKind {
    /// A size of tensors: an integer from 1.
    Size,
    /// A number of layers: an integer from 1.
    Layers,
    /// A number of layers that may be 0.
    Count,
    /// A [`KeyKind::Size`] or null.
    OptionalSize,
    /// A number above 0.
    PositiveNumber,
    /// A [`KeyKind::PositiveNumber`] or null.
    OptionalPositive,
    /// A number of at least 0 and below 1.
    Probability,
    /// A number of at least 0.
    NonNegative,
    /// True or false.
    Flag,
    /// True, false or null.
    OptionalFlag,
    /// A token id or null.
    Token,
    /// A token id, a list of token ids, or null.
    Tokens,
    /// The name of an activation.
    Activation,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// Any JSON: the family reads it.
    Structure,
}

/// The value of a setting that a file leaves out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Default {
    /// An integer.
    Int(i64),
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A text.
    Text(&'static str),
    /// Nothing.
    Null,
    /// Nothing, and an export does not have the key: transformers would take a null for a value.
    Absent,
    /// The value of another setting. A null in the file means this, too.
    Same(&'static str),
}

/// A key that makes another model than dsr's, unless it is off.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The name in `config.json`.
    pub(crate) key: &'static str,
    /// The reason, as a sentence for an error.
    pub(crate) why: &'static str,
    /// Values that turn it off, beside null, false and what is empty.
    pub(crate) also_off: &'static [Neutral],
}

/// A value that leaves a model as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Neutral {
    /// A number; a list of nothing else is neutral, too.
    Number(f64),
    /// A text; a list of nothing else is neutral, too.
    Text(&'static str),
    /// True.
    True,
    /// True, and false is not.
    OnlyTrue,
}

impl Neutral {
    /// Whether a value leaves a model as it is: null, false and what is empty do, and `also_off`.
    pub(super) fn is_off(value: &Value, also_off: &[Self]) -> bool {
        match value {
            Value::Null => true,
            Value::Bool(false) => !also_off.iter().any(|off| matches!(off, Self::OnlyTrue)),
            Value::Bool(true) => {
                also_off.iter().any(|off| matches!(off, Self::True | Self::OnlyTrue))
            }
            Value::Array(items) => items.iter().all(|item| Self::is_off(item, also_off)),
            Value::Object(entries) => entries.is_empty(),
            Value::Number(number) => {
                let x = number.as_f64();
                also_off
                    .iter()
                    .any(|off| matches!(off, Self::Number(neutral) if x == Some(*neutral)))
            }
            Value::String(text) => {
                also_off.iter().any(|off| matches!(off, Self::Text(neutral) if text == neutral))
            }
        }
    }
}

impl Refused {
    /// A key that only null, false and what is empty turn off.
    pub(crate) const fn new(key: &'static str, why: &'static str) -> Self {
        Self { key, why, also_off: &[] }
    }

    /// A key with further values that turn it off.
    pub(crate) const fn unless(
        key: &'static str,
        also_off: &'static [Neutral],
        why: &'static str,
    ) -> Self {
        Self { key, why, also_off }
    }
}

impl Key {
    /// A setting.
    pub(crate) const fn new(name: &'static str, kind: KeyKind, default: Default) -> Self {
        Self { name, kind, default }
    }

    /// A size of tensors.
    pub(crate) const fn size(name: &'static str, default: i64) -> Self {
        Self::new(name, KeyKind::Size, Default::Int(default))
    }

    /// A number of layers.
    pub(crate) const fn layers(name: &'static str, default: i64) -> Self {
        Self::new(name, KeyKind::Layers, Default::Int(default))
    }

    /// A size of tensors that is null where the file has none.
    pub(crate) const fn optional_size(name: &'static str) -> Self {
        Self::new(name, KeyKind::OptionalSize, Default::Null)
    }

    /// A number above 0.
    pub(crate) const fn positive(name: &'static str, default: f64) -> Self {
        Self::new(name, KeyKind::PositiveNumber, Default::Number(default))
    }

    /// A number above 0 that a file may leave out.
    pub(crate) const fn optional_positive(name: &'static str) -> Self {
        Self::new(name, KeyKind::OptionalPositive, Default::Absent)
    }

    /// A number of at least 0.
    pub(crate) const fn non_negative(name: &'static str, default: f64) -> Self {
        Self::new(name, KeyKind::NonNegative, Default::Number(default))
    }

    /// A number of at least 0 and below 1.
    pub(crate) const fn probability(name: &'static str, default: f64) -> Self {
        Self::new(name, KeyKind::Probability, Default::Number(default))
    }

    /// A setting that is on or off.
    pub(crate) const fn flag(name: &'static str, default: bool) -> Self {
        Self::new(name, KeyKind::Flag, Default::Flag(default))
    }

    /// A token id or null.
    pub(crate) const fn token(name: &'static str, default: Option<i64>) -> Self {
        Self::new(name, KeyKind::Token, optional(default))
    }

    /// A token id, several, or null.
    pub(crate) const fn tokens(name: &'static str, default: Option<i64>) -> Self {
        Self::new(name, KeyKind::Tokens, optional(default))
    }

    /// The name of an activation.
    pub(crate) const fn activation(name: &'static str, default: &'static str) -> Self {
        Self::new(name, KeyKind::Activation, Default::Text(default))
    }

    /// Any JSON, null where the file has none.
    pub(crate) const fn structure(name: &'static str) -> Self {
        Self::new(name, KeyKind::Structure, Default::Absent)
    }
}

const fn optional(value: Option<i64>) -> Default {
    match value {
        Some(value) => Default::Int(value),
        None => Default::Null,
    }
}
