//! Whether a value is of the kind that its key asks for, and the words for one that is not.

use serde_json::Value;

use super::{
    json::{Data, Entry, Node},
    key::{Key, Kind, Typed},
};
use crate::{config::suggest::nearest, error::Code};

/// A value that is of the right kind.
pub(super) enum Checked<'a> {
    /// `null` where that is fine.
    Nothing,
    Value(Value),
    /// A number that stood in quotes.
    Unquoted(Value),
    Block(&'static [Key], &'a [Entry]),
    Typed(&'static Typed, &'a [Entry]),
}

/// Why a value is not of its kind.
pub(super) struct Wrong {
    pub(super) code: Code,
    /// Completes "`key` must be ...".
    pub(super) must: String,
    pub(super) hint: Option<String>,
}

/// Checks the value of a key against its kind.
pub(super) fn check<'a>(kind: &'static Kind, node: &'a Node) -> Result<Checked<'a>, Wrong> {
    let is = |is: bool| if is { Ok(Checked::Value(node.to_value())) } else { Err(kind_of(kind)) };
    match (kind, &node.data) {
        (Kind::OrNull(_), Data::Null) => Ok(Checked::Nothing),
        (Kind::OrNull(kind), _) => check(kind, node),
        (Kind::Either(first, second), _) => check(first, node).or_else(|_| check(second, node)),
        (Kind::Block(keys), Data::Object(entries)) => Ok(Checked::Block(keys, entries)),
        (Kind::Typed(typed), Data::Object(entries)) => Ok(Checked::Typed(typed, entries)),
        (Kind::Any, _) => is(true),
        (Kind::Bool, Data::Bool(_)) | (Kind::Text, Data::Text(_)) => is(true),
        (Kind::Wholes, Data::List(items)) => {
            let is_whole = |item: &Node| check(&Kind::Whole(0), item).is_ok();
            is(items.iter().all(is_whole))
        }
        (Kind::Texts, Data::List(items)) => {
            is(items.iter().all(|item| matches!(item.data, Data::Text(_))))
        }
        (Kind::Numbers(length), Data::List(items)) => {
            let all = items.iter().all(|item| matches!(item.data, Data::Number(_)));
            is(all && items.len() == *length)
        }
        (Kind::Word(words), Data::Text(text)) => {
            if let Some(word) = words.iter().find(|word| word.eq_ignore_ascii_case(text)) {
                return Ok(Checked::Value((*word).into()));
            }
            let hint = nearest(text, words.iter().copied()).map(did_you_mean);
            Err(Wrong { code: Code::BadValue, must: one_of(words), hint })
        }
        (&Kind::Number(least, most), Data::Number(number)) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if (least..=most).contains(&number) {
                return is(true);
            }
            Err(Wrong { code: Code::BadValue, must: limits(least, most), hint: None })
        }
        (&Kind::Whole(least), Data::Number(number)) => whole_in(kind, number, least, i64::MAX),
        (&Kind::Between(least, most), Data::Number(number)) => whole_in(kind, number, least, most),
        (Kind::Whole(_) | Kind::Between(..) | Kind::Number(..), Data::Text(text)) => {
            // As pydantic reads it.
            let number = serde_json::from_str::<serde_json::Number>(text.trim());
            let Ok(number) = number else { return Err(kind_of(kind)) };
            match check(kind, &Node { at: node.at, data: Data::Number(number) })? {
                Checked::Value(value) => Ok(Checked::Unquoted(value)),
                _ => Err(kind_of(kind)),
            }
        }
        (_, Data::Text(text)) => Err(Wrong { hint: unquoted(kind, text), ..kind_of(kind) }),
        _ => Err(kind_of(kind)),
    }
}

fn whole_in<'a>(
    kind: &Kind,
    number: &serde_json::Number,
    least: i64,
    most: i64,
) -> Result<Checked<'a>, Wrong> {
    let whole = whole(number).ok_or_else(|| kind_of(kind))?;
    if (least..=most).contains(&whole) {
        return Ok(Checked::Value(whole.into()));
    }
    let must = match most {
        i64::MAX => format!("{least} or more"),
        _ => format!("from {least} to {most}"),
    };
    Err(Wrong { code: Code::BadValue, must, hint: None })
}

/// `2e8` is a whole number, and `0.5` is none.
fn whole(number: &serde_json::Number) -> Option<i64> {
    let whole = |f: &f64| f.fract() == 0.0 && f.abs() < 9.0e15;
    number.as_i64().or_else(|| number.as_f64().filter(whole).map(|f| f as i64))
}

fn unquoted(kind: &Kind, text: &str) -> Option<String> {
    let fits = match kind {
        Kind::Bool => matches!(text, "true" | "false"),
        _ => false,
    };
    fits.then(|| format!("write {text}, without quotes"))
}

fn kind_of(kind: &Kind) -> Wrong {
    Wrong { code: Code::WrongType, must: words(kind), hint: None }
}

/// Completes "`key` must be ...".
fn words(kind: &Kind) -> String {
    match kind {
        Kind::Bool => "true or false".to_owned(),
        Kind::Whole(_) | Kind::Between(..) => "a whole number".to_owned(),
        Kind::Number(..) => "a number".to_owned(),
        Kind::Text => "a string".to_owned(),
        Kind::Wholes => "a list of whole numbers".to_owned(),
        Kind::Texts => "a list of strings".to_owned(),
        Kind::Numbers(length) => format!("a list of {length} numbers"),
        Kind::Word(words) => one_of(words),
        Kind::Any => "anything".to_owned(),
        Kind::Block(_) | Kind::Typed(_) => "an object".to_owned(),
        Kind::OrNull(kind) => words(kind),
        Kind::Either(first, second) => format!("{} or {}", words(first), words(second)),
    }
}

fn limits(least: f64, most: f64) -> String {
    if most == f64::MAX { format!("{least} or more") } else { format!("from {least} to {most}") }
}

/// Some words, quoted, as what a value must be.
pub(super) fn one_of(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{word}\"")).collect();
    match quoted.as_slice() {
        [word] => word.clone(),
        _ => format!("one of {}", quoted.join(", ")),
    }
}

pub(super) fn did_you_mean(near: &str) -> String {
    format!("did you mean `{near}`?")
}

/// The value, for "found ...".
pub(super) fn describe(node: &Node) -> String {
    const SHOWN: usize = 40;
    match &node.data {
        Data::Null => "null".to_owned(),
        Data::Bool(_) | Data::Number(_) => node.to_value().to_string(),
        Data::Text(text) => {
            let mut shown: String = text.chars().take(SHOWN).collect();
            if shown.len() < text.len() {
                shown.push_str("...");
            }
            format!("the string {shown:?}")
        }
        Data::List(_) => "a list".to_owned(),
        Data::Object(_) => "an object".to_owned(),
    }
}
