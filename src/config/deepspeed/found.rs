//! What a file says, checked key by key against the tables.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    check::{Checked, Wrong, check, describe, did_you_mean, one_of},
    fault::{Fault, Note, Position},
    json::{Data, Entry, Node},
    key::{Fate, Key, Kind, Literal, Typed},
    listing,
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error},
};

/// The keys of a file by their dotted paths.
#[derive(Debug, Default)]
pub(super) struct Found {
    items: BTreeMap<String, Item>,
    copies: Vec<(String, &'static str)>,
}

#[derive(Debug)]
struct Item {
    at: Position,
    state: State,
}

#[derive(Debug)]
enum State {
    Value(Value),
    Auto,
    /// An object, whose keys are items too.
    Block,
    /// It is wrong, and a fault says so.
    Faulty,
}

impl Found {
    /// Checks a whole file; what it finds wrong and what has no meaning is added.
    pub(super) fn of(
        entries: &[Entry],
        keys: &'static [Key],
        notes: &mut Vec<Note>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut walk = Walk { found: Self::default(), keys, notes, faults };
        walk.object(&Level { path: "", is_off: false }, &[keys], entries);
        walk.found
    }

    /// Keys that are options as they are, in the order of the file.
    pub(super) fn copies(&self) -> &[(String, &'static str)] {
        &self.copies
    }

    /// Whether the file has the key, whatever it says there but `null`.
    pub(super) fn mentions(&self, path: &str) -> bool {
        self.items.contains_key(path)
    }

    pub(super) fn is_auto(&self, path: &str) -> bool {
        self.items.get(path).is_some_and(|item| matches!(item.state, State::Auto))
    }

    /// Where the value of a key is; the start of the file for a key that is not there.
    pub(super) fn at(&self, path: &str) -> Position {
        self.items.get(path).map_or(Position { line: 1, column: 1 }, |item| item.at)
    }

    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        match &self.items.get(path)?.state {
            State::Value(value) => Some(value),
            State::Auto | State::Block | State::Faulty => None,
        }
    }

    pub(super) fn flag(&self, path: &str) -> Option<bool> {
        self.value(path)?.as_bool()
    }

    pub(super) fn number(&self, path: &str) -> Option<f64> {
        self.value(path)?.as_f64()
    }

    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.value(path)?.as_str()
    }
}

/// Where an object stands.
struct Level<'a> {
    path: &'a str,
    /// Whether a switch around it is off, so that only types are checked.
    is_off: bool,
}

impl Level<'_> {
    fn join(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

struct Walk<'a> {
    found: Found,
    /// The keys of the top level.
    keys: &'static [Key],
    notes: &'a mut Vec<Note>,
    faults: &'a mut Vec<Fault>,
}

impl Walk<'_> {
    fn object(&mut self, level: &Level<'_>, tables: &[&'static [Key]], entries: &[Entry]) {
        let is_off = level.is_off || is_switched_off(tables, entries);
        let level = Level { is_off, ..*level };
        for entry in entries {
            match find(tables, &entry.key) {
                Some(key) => self.entry(&level, key, entry),
                None => {
                    let known = tables.iter().flat_map(|keys| keys.iter()).map(|key| key.name);
                    self.unknown(&level, entry, &known.collect::<Vec<_>>());
                }
            }
        }
    }

    fn entry(&mut self, level: &Level<'_>, key: &'static Key, entry: &Entry) {
        let path = level.join(key.name);
        if self.found.mentions(&path) {
            let message = format!("`{}` is another name of `{path}`: give one", entry.key);
            return self.fault(entry.at, Code::BadValue, message);
        }
        if let Fate::Refused(why) = key.fate {
            if !(matches!(key.kind, Kind::OrNull(_)) && matches!(entry.node.data, Data::Null)) {
                self.insert(path.clone(), entry, State::Faulty);
                let message = format!("`{path}` is not supported: {why}");
                self.fault(entry.at, Code::BadValue, message);
            }
            return;
        }
        match check(&key.kind, &entry.node) {
            Ok(Checked::Nothing) => {}
            Ok(Checked::Value(value)) => self.value(level, &path, key, entry, value),
            Ok(Checked::Unquoted(value)) => {
                let text = format!("`{path}` is a number in quotes: it is taken as {value}");
                self.notes.push(Note { at: entry.node.at, text });
                self.value(level, &path, key, entry, value);
            }
            Ok(Checked::Block(keys, entries)) => {
                self.insert(path.clone(), entry, State::Block);
                self.note_no_meaning(&path, key, entry);
                self.object(&Level { path: &path, is_off: level.is_off }, &[keys], entries);
            }
            Ok(Checked::Typed(typed, entries)) => {
                self.insert(path.clone(), entry, State::Block);
                self.typed(&path, typed, entry, entries);
            }
            Err(_) if is_auto(&entry.node) && !is_block(&key.kind) => {
                self.insert(path.clone(), entry, State::Auto);
                self.note_no_meaning(&path, key, entry);
                self.copy(path, key);
            }
            Err(wrong) => {
                self.insert(path.clone(), entry, State::Faulty);
                self.wrong(&path, &entry.node, wrong);
            }
        }
    }

    fn value(
        &mut self,
        level: &Level<'_>,
        path: &str,
        key: &'static Key,
        entry: &Entry,
        value: Value,
    ) {
        if let Fate::Only(values, why) = key.fate
            && !level.is_off
            && !values.iter().any(|allowed| allowed.is(&value))
        {
            let words = values.iter().map(Literal::to_string).collect::<Vec<_>>().join(" or ");
            let message = format!("`{path}` must be {words}, found {value}: {why}");
            self.fault(entry.node.at, Code::BadValue, message);
        }
        self.note_no_meaning(path, key, entry);
        self.insert(path.to_owned(), entry, State::Value(value));
        self.copy(path.to_owned(), key);
    }

    fn typed(&mut self, path: &str, typed: &'static Typed, entry: &Entry, entries: &[Entry]) {
        let level = Level { path, is_off: false };
        let params = self.typed_params(&level, typed, entry, entries);
        for entry in entries {
            match (entry.key.as_str(), params) {
                ("type", _) | ("params", None) => {}
                ("params", Some(keys)) => match &entry.node.data {
                    Data::Null => {}
                    Data::Object(entries) => {
                        let path = level.join("params");
                        self.object(&Level { path: &path, is_off: false }, &[keys], entries);
                    }
                    _ => {
                        let must = "an object".to_owned();
                        let wrong = Wrong { code: Code::WrongType, must, hint: None };
                        self.wrong(&level.join("params"), &entry.node, wrong);
                    }
                },
                (name, _) => match find(&[typed.beside], name) {
                    Some(key) => self.entry(&level, key, entry),
                    None => {
                        let beside = typed.beside.iter().map(|key| key.name);
                        let known: Vec<_> = ["type", "params"].into_iter().chain(beside).collect();
                        self.unknown(&level, entry, &known);
                    }
                },
            }
        }
    }

    /// The parameters that the type of an object has; `None` where the type is wrong.
    fn typed_params(
        &mut self,
        level: &Level<'_>,
        typed: &'static Typed,
        entry: &Entry,
        entries: &[Entry],
    ) -> Option<&'static [Key]> {
        let path = level.join("type");
        let Some(kind) = entries.iter().find(|entry| entry.key == "type") else {
            let message = format!("`{path}` is required and missing");
            self.fault(entry.at, Code::Missing, message);
            return None;
        };
        let Data::Text(name) = &kind.node.data else {
            let must = "a string".to_owned();
            self.wrong(&path, &kind.node, Wrong { code: Code::WrongType, must, hint: None });
            return None;
        };
        let is = |other: &str| other.eq_ignore_ascii_case(name);
        if let Some((name, params)) = typed.types.iter().find(|(other, _)| is(other)) {
            self.insert(path, kind, State::Value((*name).into()));
            return Some(params);
        }
        self.insert(path.clone(), kind, State::Faulty);
        if let Some((name, why)) = typed.refused.iter().find(|(other, _)| is(other)) {
            let message = format!("`{path}` {name} is not supported: {why}");
            self.fault(kind.node.at, Code::BadValue, message);
            return None;
        }
        let words: Vec<_> = typed.types.iter().map(|(name, _)| *name).collect();
        let near = nearest(name, words.iter().copied());
        let hint = near.map_or_else(|| typed.others.to_owned(), did_you_mean);
        let must = one_of(&words);
        self.wrong(&path, &kind.node, Wrong { code: Code::BadValue, must, hint: Some(hint) });
        None
    }

    fn insert(&mut self, path: String, entry: &Entry, state: State) {
        self.found.items.insert(path, Item { at: entry.node.at, state });
    }

    fn copy(&mut self, path: String, key: &'static Key) {
        if let Fate::Becomes(option) = key.fate {
            self.found.copies.push((path, option));
        }
    }

    fn note_no_meaning(&mut self, path: &str, key: &Key, entry: &Entry) {
        if let Fate::NoMeaning(why) = key.fate {
            let text = format!("`{path}` has no meaning here: {why}");
            self.notes.push(Note { at: entry.at, text });
        }
    }

    fn unknown(&mut self, level: &Level<'_>, entry: &Entry, known: &[&str]) {
        let message = match level.path {
            "" => format!("DeepSpeed has no key `{}`", entry.key),
            block => format!("`{block}` has no key `{}`", entry.key),
        };
        let hint = nearest(&entry.key, known.iter().copied()).map(did_you_mean);
        let elsewhere = || {
            Some(format!(
                "it belongs in `{}`",
                listing::home_of(self.keys, &entry.key, level.path)?
            ))
        };
        let hint = hint.or_else(elsewhere);
        if level.path.is_empty() && hint.is_none() {
            let text = format!("`{}` is no key that DeepSpeed reads: it has no meaning", entry.key);
            self.notes.push(Note { at: entry.at, text });
            return;
        }
        let hint = hint.unwrap_or_else(|| match known.len() {
            ..=12 => format!("it has: {}", known.join(", ")),
            _ => "dsr config --keys lists all keys".to_owned(),
        });
        let error = Error::new(Code::UnknownOption, message).hint(hint);
        let error = error.option(level.join(&entry.key));
        self.faults.push(Fault { at: Some(entry.at), error });
    }

    fn wrong(&mut self, path: &str, node: &Node, wrong: Wrong) {
        let message = format!("`{path}` must be {}, found {}", wrong.must, describe(node));
        let error = Error::new(wrong.code, message).option(path).hint_if(wrong.hint);
        self.faults.push(Fault { at: Some(node.at), error });
    }

    fn fault(&mut self, at: Position, code: Code, message: String) {
        self.faults.push(Fault { at: Some(at), error: Error::new(code, message) });
    }
}

/// The description of a key, that of its proper name for an alias.
fn find(tables: &[&'static [Key]], name: &str) -> Option<&'static Key> {
    let mut keys = tables.iter().flat_map(|keys| keys.iter());
    let key = keys.find(|key| key.name == name)?;
    match key.fate {
        Fate::AliasOf(proper) => find(tables, proper),
        _ => Some(key),
    }
}

/// Whether the object has an `enabled` that dsr cannot honour, and it is off.
fn is_switched_off(tables: &[&'static [Key]], entries: &[Entry]) -> bool {
    let key = find(tables, "enabled");
    let is_switch = key.is_some_and(|key| matches!(key.fate, Fate::Only(..)));
    let is_on =
        |entry: &Entry| entry.key == "enabled" && !matches!(entry.node.data, Data::Bool(false));
    is_switch && !entries.iter().any(is_on)
}

fn is_auto(node: &Node) -> bool {
    matches!(&node.data, Data::Text(text) if text == "auto")
}

fn is_block(kind: &Kind) -> bool {
    match kind {
        Kind::Block(_) | Kind::Typed(_) => true,
        Kind::OrNull(kind) => is_block(kind),
        Kind::Either(_, kind) => is_block(kind),
        _ => false,
    }
}
