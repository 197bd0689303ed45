//! The options of dsr while they are put together, each with where it comes from.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    fault::{Fault, Note, Position},
    found::Found,
};
use crate::{
    config::schedule::required_options,
    error::{Code, Error},
};

/// The options of `init_engine` that a file stands for.
#[derive(Debug)]
pub struct Settings {
    /// The options, as a tree of plain data.
    pub options: Map<String, Value>,
    /// What the user should know, in the order of the file.
    pub notes: Vec<Note>,
    sources: BTreeMap<String, Source>,
}

/// Where an option comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The file says it here.
    File(Position),
    /// The recipe says it beside the file.
    Given,
}

/// Where an option comes from, or is to come from.
#[derive(Debug)]
enum Source {
    File(Key),
    Given,
    /// DeepSpeed does so where its file is silent.
    Implied,
    /// The file says `"auto"`, and nothing else says more.
    Open(Key),
}

/// A key of the file.
#[derive(Debug, Clone)]
struct Key {
    path: String,
    at: Position,
    /// The value in the file.
    says: Value,
}

impl Key {
    fn of(found: &Found, path: &str) -> Self {
        let says = found.value(path).cloned().unwrap_or_default();
        Self { path: path.to_owned(), at: found.at(path), says }
    }
}

impl Settings {
    /// Where the option at a dotted path comes from, or the first one below it; `None` for what
    /// neither file nor recipe says.
    pub fn origin(&self, option: &str) -> Option<Origin> {
        let path = option.split('[').next().unwrap_or(option);
        let below = format!("{path}.");
        let inside = self.sources.range(below.clone()..).take_while(|(p, _)| p.starts_with(&below));
        let mut sources = self.sources.get(path).into_iter().chain(inside.map(|(_, s)| s));
        sources.find_map(|source| match source {
            Source::File(key) => Some(Origin::File(key.at)),
            Source::Given => Some(Origin::Given),
            Source::Implied | Source::Open(_) => None,
        })
    }

    /// Whether no `"auto"` is left for the recipe to replace.
    pub fn is_settled(&self) -> bool {
        !self.sources.values().any(|source| matches!(source, Source::Open(_)))
    }
}

/// What the recipe says beside the file, in dsr's terms.
pub(super) struct Given {
    options: Map<String, Value>,
    is_there: bool,
}

impl Given {
    pub(super) fn of(options: Option<&Map<String, Value>>) -> Self {
        let mut owned = options.cloned().unwrap_or_default();
        // The word is short for the map.
        if let Some(Value::String(dtype)) = owned.get("precision") {
            let map = Map::from_iter([("dtype".to_owned(), Value::from(dtype.as_str()))]);
            owned.insert("precision".to_owned(), Value::Object(map));
        }
        Self { options: owned, is_there: options.is_some() }
    }

    pub(super) fn value(&self, option: &str) -> Option<&Value> {
        lookup(&self.options, option)
    }

    pub(super) fn has(&self, option: &str) -> bool {
        self.value(option).is_some()
    }

    pub(super) fn text(&self, option: &str) -> Option<&str> {
        self.value(option)?.as_str()
    }
}

/// The options so far.
pub(super) struct Draft {
    options: Map<String, Value>,
    sources: BTreeMap<String, Source>,
    notes: Vec<Note>,
    faults: Vec<Fault>,
}

impl Draft {
    pub(super) fn new(notes: Vec<Note>, faults: Vec<Fault>) -> Self {
        Self { options: Map::new(), sources: BTreeMap::new(), notes, faults }
    }

    /// Makes what the file says at `key` the option, or leaves that open for `"auto"`.
    pub(super) fn copy(&mut self, found: &Found, key: &str, option: &str) {
        match found.value(key) {
            Some(value) => self.set(found, key, option, value.clone()),
            None => self.leave_open(found, key, option),
        }
    }

    /// Sets an option because of `key`.
    pub(super) fn set(&mut self, found: &Found, key: &str, option: &str, value: Value) {
        self.insert(option, value);
        self.sources.insert(option.to_owned(), Source::File(Key::of(found, key)));
    }

    /// Leaves an option to the recipe if the file says `"auto"` at `key`.
    pub(super) fn leave_open(&mut self, found: &Found, key: &str, option: &str) {
        if found.is_auto(key) && !self.sources.contains_key(option) {
            self.sources.insert(option.to_owned(), Source::Open(Key::of(found, key)));
        }
    }

    /// Sets an option that the file means without a word.
    pub(super) fn imply(&mut self, option: &str, value: Value) {
        if !self.sources.contains_key(option) {
            self.insert(option, value);
            self.sources.insert(option.to_owned(), Source::Implied);
        }
    }

    pub(super) fn note(&mut self, at: Position, text: impl Into<String>) {
        self.notes.push(Note { at, text: text.into() });
    }

    pub(super) fn fault(&mut self, at: Position, message: impl Into<String>) {
        self.fault_with(at, Code::BadValue, message, None);
    }

    pub(super) fn fault_with(
        &mut self,
        at: Position,
        code: Code,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        let error = Error::new(code, message).hint_if(hint);
        self.faults.push(Fault { at: Some(at), error });
    }

    /// A key that DeepSpeed cannot do without either.
    pub(super) fn missing(&mut self, at: Position, key: &str) {
        self.fault_with(at, Code::Missing, format!("`{key}` is required and missing"), None);
    }

    /// What the recipe says beside the file, and the file says otherwise.
    pub(super) fn contradiction(&mut self, found: &Found, key: &str, option: &str, given: &Value) {
        self.contradict(&Key::of(found, key), option, given);
    }

    fn contradict(&mut self, key: &Key, option: &str, given: &Value) {
        let Key { path, at, says } = key;
        let message = format!(
            "`{option}` is {given} here, and `{path}` is {says} on line {} of the file",
            at.line
        );
        let hint = "leave it out here, or write \"auto\" in the file";
        let error = Error::new(Code::BadValue, message).option(option).hint(hint);
        self.faults.push(Fault { at: None, error });
    }

    pub(super) fn value(&self, option: &str) -> Option<&Value> {
        lookup(&self.options, option)
    }

    pub(super) fn number(&self, option: &str) -> Option<f64> {
        self.value(option)?.as_f64()
    }

    pub(super) fn text(&self, option: &str) -> Option<String> {
        self.value(option)?.as_str().map(ToOwned::to_owned)
    }

    /// Whether the file says `"auto"`, and nothing else says more.
    pub(super) fn is_open(&self, option: &str) -> bool {
        matches!(self.sources.get(option), Some(Source::Open(_)))
    }

    /// Sets an option that was left open.
    pub(super) fn resolve(&mut self, option: &str, value: Value) {
        self.insert(option, value);
        self.sources.insert(option.to_owned(), Source::Implied);
    }

    /// Takes back what the file says, with a note, because it is not used.
    pub(super) fn withdraw(&mut self, option: &str, why: &str) {
        let (Some(Source::File(key)) | Some(Source::Open(key))) = self.sources.get(option) else {
            return;
        };
        let Key { path, at, .. } = key.clone();
        self.remove(option);
        self.note(at, format!("`{path}` is not used: {why}"));
    }

    /// Takes back a whole block, without a word.
    pub(super) fn drop_block(&mut self, name: &str) {
        self.options.shift_remove(name);
        let inside = format!("{name}.");
        self.sources.retain(|option, _| !option.starts_with(&inside));
    }

    /// Adds what the recipe says: it must be what the file says where that says anything.
    pub(super) fn fill(&mut self, given: &Given) {
        for (name, value) in &given.options {
            self.fill_at(name, value);
        }
    }

    fn fill_at(&mut self, option: &str, given: &Value) {
        let current = self.value(option);
        if let Value::Object(inside) = given
            && current.is_none_or(Value::is_object)
        {
            if inside.is_empty() {
                self.insert(option, given.clone());
            }
            for (name, value) in inside {
                self.fill_at(&format!("{option}.{name}"), value);
            }
            return;
        }
        match (self.sources.get(option), current) {
            (Some(Source::File(key)), Some(theirs)) => {
                // Adam is AdamW, and may be called either.
                if !is_same(theirs, given) && !is_same(&key.says, given) {
                    let key = key.clone();
                    self.contradict(&key, option, given);
                }
            }
            // `activation_checkpointing: true` beside a file that says how.
            (None, Some(Value::Object(_))) if given.as_bool() == Some(true) => {}
            (None, Some(Value::Object(_))) => {
                let message = format!("`{option}` must be a map beside this file, found {given}");
                let error = Error::new(Code::WrongType, message).option(option);
                self.faults.push(Fault { at: None, error });
            }
            _ => {
                self.insert(option, given.clone());
                self.sources.insert(option.to_owned(), Source::Given);
            }
        }
    }

    /// The settings, or all faults in the order of the file.
    pub(super) fn finish(mut self, given: &Given) -> Result<Settings, Vec<Fault>> {
        self.judge_open(given);
        if !self.faults.is_empty() {
            self.faults.sort_by_key(|fault| fault.at);
            return Err(self.faults);
        }
        self.notes.sort_by_key(|note| note.at);
        self.notes.dedup();
        sort(&mut self.options);
        Ok(Settings { options: self.options, notes: self.notes, sources: self.sources })
    }

    /// A note for each `"auto"` that is left to the recipe; a fault if dsr needs it and the recipe
    /// has had its say.
    fn judge_open(&mut self, given: &Given) {
        let has_rows = self.value("micro_batch_size").is_some() || self.is_open("micro_batch_size");
        // It follows from the other sizes.
        if has_rows && self.is_open("train_batch_size") {
            self.sources.remove("train_batch_size");
        }
        if let Some(Source::Open(Key { at, path, .. })) = self.sources.get("micro_batch_size") {
            let text = format!(
                "`{path}` is \"auto\": the largest power of two that fits, where the recipe does not give \
                 `micro_batch_size`"
            );
            self.notes.push(Note { at: *at, text });
            self.resolve("micro_batch_size", Value::from("auto"));
        }
        let kind = self.text("scheduler.type").unwrap_or_default();
        let is_needed = |option: &str| {
            let in_schedule = option.strip_prefix("scheduler.");
            option == "train_batch_size"
                || in_schedule.is_some_and(|name| required_options(&kind).contains(&name))
        };
        for (option, source) in &self.sources {
            let Source::Open(Key { path, at, .. }) = source else { continue };
            let (at, needed) = (*at, is_needed(option));
            if needed && given.is_there {
                let message = format!("`{path}` is \"auto\", and nothing says what it is");
                let error = Error::new(Code::Missing, message)
                    .hint(format!("give from_deepspeed's options `{option}`"));
                self.faults.push(Fault { at: Some(at), error });
                continue;
            }
            let text = match needed {
                true => format!("`{path}` is \"auto\": the recipe has to give `{option}`"),
                false => format!("`{path}` is \"auto\": the recipe's `{option}`, or dsr's default"),
            };
            self.notes.push(Note { at, text });
        }
    }

    fn insert(&mut self, option: &str, value: Value) {
        let mut map = &mut self.options;
        let mut path = option;
        while let Some((name, rest)) = path.split_once('.') {
            let inner = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if !inner.is_object() {
                *inner = Value::Object(Map::new());
            }
            let Value::Object(inside) = inner else { return };
            (map, path) = (inside, rest);
        }
        map.insert(path.to_owned(), value);
    }

    /// Takes an option away, and the map around it when that is empty then.
    fn remove(&mut self, option: &str) {
        self.sources.remove(option);
        match option.split_once('.') {
            None => drop(self.options.shift_remove(option)),
            Some((name, rest)) => {
                if let Some(Value::Object(map)) = self.options.get_mut(name) {
                    map.shift_remove(rest);
                    if map.is_empty() {
                        self.options.shift_remove(name);
                    }
                }
            }
        }
    }
}

fn lookup<'a>(options: &'a Map<String, Value>, option: &str) -> Option<&'a Value> {
    match option.split_once('.') {
        None => options.get(option),
        Some((name, rest)) => lookup(options.get(name)?.as_object()?, rest),
    }
}

/// Whether two values say the same: `1` is `1.0`, and case does not matter.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::String(a), Value::String(b)) => a.eq_ignore_ascii_case(b),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(a, b))
        }
        _ => a == b,
    }
}

/// The order in which options are usually written.
const ORDER: &[&str] = &[
    "type",
    "dtype",
    "stage",
    "enabled",
    "train_batch_size",
    "micro_batch_size",
    "gradient_accumulation_steps",
    "loss_average",
    "gradient_clipping",
    "precision",
    "optimizer",
    "scheduler",
    "activation_checkpointing",
    "sparse_attention",
    "zero",
];

fn sort(options: &mut Map<String, Value>) {
    let rank = |name: &str| ORDER.iter().position(|o| *o == name).unwrap_or(ORDER.len());
    let mut entries: Vec<_> = std::mem::take(options).into_iter().collect();
    entries.sort_by_key(|(name, _)| rank(name));
    for (_, value) in &mut entries {
        if let Value::Object(inside) = value {
            sort(inside);
        }
    }
    options.extend(entries);
}
