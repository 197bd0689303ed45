//! What is known of each key: its type and range, and what becomes of it in dsr.

use std::fmt;

/// A key of DeepSpeed's file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) fate: Fate,
}

/// What a value must be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bool,
    /// A whole number, this or more; `2e8` is one.
    Whole(i64),
    /// A whole number in this range, ends included.
    Between(i64, i64),
    /// A number in this range, ends included.
    Number(f64, f64),
    Text,
    /// One of a few words. Case does not matter.
    Word(&'static [&'static str]),
    /// A list of strings.
    Texts,
    /// A list of whole numbers, 0 or more.
    Wholes,
    /// A list of this many numbers.
    Numbers(usize),
    /// What DeepSpeed hands on without a look.
    Any,
    /// An object with these keys.
    Block(&'static [Key]),
    /// An object with a `type`, and `params` that depend on it.
    Typed(&'static Typed),
    /// `null` is as good as nothing.
    OrNull(&'static Self),
    /// One or the other; faults are those of the second.
    Either(&'static Self, &'static Self),
}

/// An object whose `type` decides about its `params`.
#[derive(Debug)]
pub(super) struct Typed {
    /// The types that can be honoured.
    pub(super) types: Vec<(&'static str, &'static [Key])>,
    /// Types that DeepSpeed knows, or knew, and why they are refused.
    pub(super) refused: &'static [(&'static str, &'static str)],
    /// Ends the refusal of any other type.
    pub(super) others: &'static str,
    /// Keys beside `type` and `params`.
    pub(super) beside: &'static [Key],
    /// The dsr option that the type becomes.
    pub(super) becomes: &'static str,
}

/// What becomes of a key.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fate {
    /// It is dsr's option at this path, as it is.
    Becomes(&'static str),
    /// It is a part of dsr's option at this path.
    Makes(&'static str),
    /// There is nothing to do for it here; the words complete "`key` has no meaning here: ...".
    NoMeaning(&'static str),
    /// Only these values can be honoured; the words say why and what to do.
    Only(&'static [Literal], &'static str),
    /// It cannot be honoured; the words say why and what to do.
    Refused(&'static str),
    /// It has only a meaning with this key of its object, which decides.
    GoesWith(&'static str),
    /// Another name of this key of the same object.
    AliasOf(&'static str),
    /// An object whose keys have fates of their own.
    Inside,
}

/// A value in a table.
#[derive(Debug, Clone, Copy)]
pub(super) enum Literal {
    Bool(bool),
    Number(f64),
    Word(&'static str),
}

impl Literal {
    pub(super) fn is(self, value: &serde_json::Value) -> bool {
        match self {
            Self::Bool(b) => value.as_bool() == Some(b),
            Self::Number(n) => value.as_f64() == Some(n),
            Self::Word(word) => value.as_str().is_some_and(|v| v.eq_ignore_ascii_case(word)),
        }
    }
}

impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(b) => write!(f, "{b}"),
            Self::Number(n) => write!(f, "{n}"),
            Self::Word(word) => write!(f, "\"{word}\""),
        }
    }
}

pub(super) const NO: &[Literal] = &[Literal::Bool(false)];
pub(super) const YES: &[Literal] = &[Literal::Bool(true)];

/// A number, 0 or more.
pub(super) const NOT_NEGATIVE: Kind = Kind::Number(0.0, f64::MAX);
/// A number from 0 to 1.
pub(super) const RATIO: Kind = Kind::Number(0.0, 1.0);
/// Any number.
pub(super) const ANY_NUMBER: Kind = Kind::Number(f64::MIN, f64::MAX);

/// A key that is dsr's option at `path`.
pub(super) const fn becomes(name: &'static str, kind: Kind, path: &'static str) -> Key {
    Key { name, kind, fate: Fate::Becomes(path) }
}

/// A key that is a part of dsr's option at `path`.
pub(super) const fn makes(name: &'static str, kind: Kind, path: &'static str) -> Key {
    Key { name, kind, fate: Fate::Makes(path) }
}

/// A key for which there is nothing to do.
pub(super) const fn no_meaning(name: &'static str, kind: Kind, why: &'static str) -> Key {
    Key { name, kind, fate: Fate::NoMeaning(why) }
}

/// A key of which only some values can be honoured.
pub(super) const fn only(
    name: &'static str,
    kind: Kind,
    values: &'static [Literal],
    why: &'static str,
) -> Key {
    Key { name, kind, fate: Fate::Only(values, why) }
}

/// A key that cannot be honoured.
pub(super) const fn refused(name: &'static str, why: &'static str) -> Key {
    Key { name, kind: Kind::Any, fate: Fate::Refused(why) }
}

/// A key that only has a meaning with another of its object.
pub(super) const fn goes_with(name: &'static str, kind: Kind, key: &'static str) -> Key {
    Key { name, kind, fate: Fate::GoesWith(key) }
}

/// Another name of `key`, which stands in the same table and gives the type.
pub(super) const fn alias(name: &'static str, key: &'static str) -> Key {
    Key { name, kind: Kind::Any, fate: Fate::AliasOf(key) }
}

/// An object.
pub(super) const fn block(name: &'static str, keys: &'static [Key]) -> Key {
    Key { name, kind: Kind::Block(keys), fate: Fate::Inside }
}

/// An object with a `type`; made once.
pub(super) fn typed(name: &'static str, typed: Typed) -> Key {
    Key { name, kind: Kind::Typed(Box::leak(Box::new(typed))), fate: Fate::Inside }
}
