//! The strict reader of option maps: `init_engine(model, #{ ... })`.
//!
//! Unknown keys (with the nearest known one), wrong types, values out of range and missing keys are
//! faults, each with its dotted path. Numbers are coerced: `1` is a float where a float is asked for,
//! and `1e3` a whole number.
//!
//! Getters always give a value, so that reading goes on after a fault; a value that stands in for
//! a faulty one never leaves [`read`], which then returns the error.

use std::collections::BTreeSet;

use super::{
    field::{Field, Given, missing},
    kind::{Kind, Row, Variant},
    types::{OptionValue, read_like, read_word},
    value::{Map, Value},
    wrong::Wrong,
};
use crate::{
    config::{suggest::nearest, words::of_elsewhere},
    error::{Code, Error, Result},
};

/// A struct whose fields are the options of a map; made by `option_table!`.
pub trait OptionTable: Default {
    /// Its options, in the order of the fields.
    const ROWS: &'static [Row];

    /// Reads them all.
    fn read(o: &mut Options<'_>) -> Self;
}

/// The type of an option: a single value, or a table of its own.
pub trait OptionType: Default {
    /// Looks the option up.
    fn take(o: &mut Options<'_>, key: &'static str) -> Given<Self>;

    /// The kind of its values.
    fn kind() -> Kind;

    /// How a recipe writes it, where a default is worth showing.
    fn shown(&self) -> Option<String> {
        None
    }
}

/// Reads the trailing option map of the function `owner`: `fields` asks for every option that
/// exists, and what it did not ask for is refused.
pub fn read<T>(owner: &str, map: &Map, fields: impl FnOnce(&mut Options<'_>) -> T) -> Result<T> {
    let mut faults = Vec::new();
    let value = Options::read_map(Level { owner, path: "" }, map, &mut faults, fields);
    Error::all(faults).map_or(Ok(value), Err)
}

/// Reads the trailing option map of the function `owner` into a table.
///
/// # Errors
/// All mistakes of the map, each with the path of its option.
pub fn read_table<T: OptionTable>(owner: &str, map: &Map) -> Result<T> {
    read(owner, map, T::read)
}

/// A table in which no option is given.
pub fn read_empty<T: OptionTable>() -> T {
    Options::read_map(Level { owner: "", path: "" }, &Map::new(), &mut Vec::new(), T::read)
}

/// One level of an option map while it is read.
pub struct Options<'a> {
    level: Level<'a>,
    map: &'a Map,
    asked: BTreeSet<String>,
    /// Names of elsewhere, each with the option that it means.
    meant: Vec<(&'static str, &'static str)>,
    faults: &'a mut Vec<Error>,
}

/// Where a map stands: the function that takes it, and the path of keys down to it.
#[derive(Clone, Copy)]
struct Level<'a> {
    owner: &'a str,
    path: &'a str,
}

impl Level<'_> {
    fn join(self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { self.owner } else { self.path }
    }
}

impl<'a> Options<'a> {
    fn read_map<T>(
        level: Level<'a>,
        map: &'a Map,
        faults: &'a mut Vec<Error>,
        fields: impl FnOnce(&mut Options<'_>) -> T,
    ) -> T {
        let mut options = Options { level, map, asked: BTreeSet::new(), meant: Vec::new(), faults };
        let value = fields(&mut options);
        options.refuse_unknown();
        value
    }

    /// As [`Self::get`], of an option that may have its name in DeepSpeed's file instead.
    pub fn get_spelled<T: OptionType>(
        &mut self,
        name: &'static str,
        deepspeed: Option<&'static str>,
    ) -> Field<'_, T> {
        let key = self.spelling(name, deepspeed);
        self.get(key)
    }

    /// The key of an option as this map spells it.
    fn spelling(&mut self, name: &'static str, deepspeed: Option<&'static str>) -> &'static str {
        match deepspeed.filter(|key| *key != name && self.map.contains_key(*key)) {
            None => name,
            Some(key) if !self.map.contains_key(name) => {
                self.asked.insert(name.to_owned());
                key
            }
            Some(key) => {
                let message =
                    format!("`{key}` is DeepSpeed's word for `{name}`: write one of them");
                let path = self.ask(key);
                self.faults.push(Error::new(Code::BadValue, message).option(path));
                name
            }
        }
    }

    /// An option of a single value, or a table.
    pub fn get<T: OptionType>(&mut self, key: &'static str) -> Field<'_, T> {
        let value = T::take(self, key);
        self.field(key, value, T::kind().words())
    }

    fn field<T>(&mut self, key: &str, value: Given<T>, words: Vec<&'static str>) -> Field<'_, T> {
        Field { path: self.path(key), value, words, faults: &mut *self.faults }
    }

    /// Reads a single value.
    pub(super) fn value<T: OptionValue>(&mut self, key: &'static str) -> Given<T> {
        let path = self.ask(key);
        let read = self.map.get(key).map(T::read);
        self.record(&path, read)
    }

    /// Reads a table inside this map.
    pub fn table<T: OptionTable>(&mut self, key: &'static str) -> Given<T> {
        let is_there = self.has(key);
        match self.map(key, T::read) {
            Some(table) => Given::Value(table),
            None if is_there => Given::Faulty,
            None => Given::Absent,
        }
    }

    /// An option that is one of a few words. Case does not matter.
    pub fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Field<'_, T> {
        let path = self.ask(key);
        let read = self.map.get(key).map(|found| read_word(found, choices));
        let value = self.record(&path, read);
        self.field(key, value, choices.iter().map(|(word, _)| *word).collect())
    }

    /// The `type` of a map that it decides about.
    pub fn variant<T: Sync>(
        &mut self,
        types: &'static [T],
        variant: impl Fn(&'static T) -> &'static Variant,
    ) -> Field<'_, &'static T> {
        let words = |of: &'static T| variant(of).names.iter().map(move |name| (*name, of));
        self.choice("type", &types.iter().flat_map(words).collect::<Vec<_>>())
    }

    /// A map inside this one, read by `fields`; `None` when the key is absent, or is no map.
    pub fn map<T>(
        &mut self,
        key: &'static str,
        fields: impl FnOnce(&mut Options<'_>) -> T,
    ) -> Option<T> {
        let path = self.ask(key);
        let found = self.map.get(key)?;
        let level = Level { owner: self.level.owner, path: &path };
        if let Value::Map(inner) = found {
            return Some(Options::read_map(level, inner, self.faults, fields));
        }
        let wrong = Wrong::kind("a map", found).hint(Some(format!("write {key}: #{{ ... }}")));
        self.faults.push(wrong.into_error(&path));
        None
    }

    /// Like [`map`](Self::map), but any other key counts as an empty map.
    pub fn map_or_empty<T>(
        &mut self,
        key: &'static str,
        fields: impl Fn(&mut Options<'_>) -> T,
    ) -> T {
        let is_there = self.has(key);
        let path = self.path(key);
        let level = Level { owner: self.level.owner, path: &path };
        self.map(key, &fields).unwrap_or_else(|| {
            // A value that is not a map is a fault already; what else is wrong in it is unknown.
            let mut unseen = Vec::new();
            let faults = if is_there { &mut unseen } else { &mut *self.faults };
            Options::read_map(level, &Map::new(), faults, fields)
        })
    }

    /// A list of maps inside this one, each read by `fields`; empty when the key is absent.
    pub fn maps<T>(
        &mut self,
        key: &'static str,
        mut fields: impl FnMut(&mut Options<'_>) -> T,
    ) -> Vec<T> {
        let path = self.ask(key);
        let Some(found) = self.map.get(key) else { return Vec::new() };
        let Value::List(items) = found else {
            let wrong = Wrong::kind("a list of maps", found);
            let wrong = wrong.hint(Some(format!("write {key}: [#{{ ... }}]")));
            self.faults.push(wrong.into_error(&path));
            return Vec::new();
        };
        let mut read = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let level = Level { owner: self.level.owner, path: &path };
            match item {
                Value::Map(map) => {
                    read.push(Options::read_map(level, map, self.faults, &mut fields));
                }
                _ => self.faults.push(Wrong::kind("a map", item).into_error(&path)),
            }
        }
        read
    }

    /// An option of the type that `like` has, [`Value::Nothing`] for any; `like` itself where the option
    /// is absent and not required. A map with keys is read key by key.
    pub fn like(&mut self, key: &str, like: &Value, is_required: bool) -> Value {
        let path = self.level.join(key);
        self.asked.insert(key.to_owned());
        let Some(found) = self.map.get(key) else {
            if is_required {
                self.faults.push(missing(&path));
            }
            return like.clone();
        };
        if let (Value::Map(like), Value::Map(found)) = (like, found)
            && !like.is_empty()
        {
            let level = Level { owner: self.level.owner, path: &path };
            return Value::Map(Options::read_map(level, found, self.faults, |o| {
                like.iter().map(|(key, like)| (key.clone(), o.like(key, like, false))).collect()
            }));
        }
        match self.record(&path, Some(read_like(found, like))) {
            Given::Value(value) => value,
            Given::Absent | Given::Faulty => like.clone(),
        }
    }

    /// The value itself, for what only a binding understands (a handle, a function).
    pub fn raw(&mut self, key: &'static str) -> Option<Value> {
        self.ask(key);
        self.map.get(key).cloned()
    }

    /// The value as it was given; its absence is a fault.
    pub fn raw_required(&mut self, key: &'static str) -> Option<Value> {
        let found = self.raw(key);
        if found.is_none() {
            let path = self.path(key);
            self.faults.push(missing(&path));
        }
        found
    }

    /// Whether nothing wrong was found so far.
    pub fn is_faultless(&self) -> bool {
        self.faults.is_empty()
    }

    /// Says which option each of these names of elsewhere means, for the hints.
    pub fn mean(&mut self, names: Vec<(&'static str, &'static str)>) {
        self.meant = names;
    }

    /// Accepts whatever else the map holds, where a fault leaves unknown what it may hold.
    pub fn accept_rest(&mut self) {
        self.asked.extend(self.map.keys().cloned());
    }

    /// The dotted path of the option `key`, for messages.
    pub fn path(&self, key: &str) -> String {
        self.level.join(key)
    }

    /// Whether the key is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// Whether the key holds a map, for options that are a word or a map.
    pub fn is_map(&self, key: &str) -> bool {
        matches!(self.map.get(key), Some(Value::Map(_)))
    }

    /// Adds a fault that the values together make, at the option `key`.
    pub fn fault(&mut self, key: &str, code: Code, message: impl Into<String>) {
        let path = self.level.join(key);
        self.faults.push(Error::new(code, message).option(path));
    }

    /// Refuses the value `found` of the option `key`; `must` completes "`path` must be ...".
    pub fn refuse_value(&mut self, key: &str, must: &str, found: &Value) {
        let path = self.path(key);
        self.faults.push(Wrong::kind(must, found).into_error(&path));
    }

    /// Refuses options that are there; `why` ends the sentence that begins with the option.
    pub fn refuse(&mut self, keys: impl IntoIterator<Item = &'static str>, why: &str) {
        for key in keys {
            if self.has(key) {
                let message = format!("`{}` {why}", self.path(key));
                self.fault(key, Code::BadValue, message);
            }
        }
    }

    /// Adds a validated layer's own faults, whose option paths start at this level.
    pub fn check<T>(&mut self, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        for fault in error.split() {
            let path = fault.option_path().map(|path| self.level.join(path));
            self.faults.push(match path {
                Some(path) => fault.option(path),
                None => fault,
            });
        }
        None
    }

    fn ask(&mut self, key: &'static str) -> String {
        self.asked.insert(key.to_owned());
        self.level.join(key)
    }

    fn record<T>(&mut self, path: &str, read: Option<std::result::Result<T, Wrong>>) -> Given<T> {
        match read {
            None => Given::Absent,
            Some(Ok(value)) => Given::Value(value),
            Some(Err(wrong)) => {
                self.faults.push(wrong.into_error(path));
                Given::Faulty
            }
        }
    }

    /// The option that an unknown key is probably meant to be.
    fn nearest(&self, key: &str) -> Option<&str> {
        let meant = |name: &str| self.meant.iter().find(|(known, _)| *known == name);
        let names = self.meant.iter().map(|&(name, _)| name);
        let known = self.asked.iter().map(String::as_str);
        let near = nearest(key, known.chain(names))?;
        Some(meant(near).map_or(near, |&(_, here)| here))
    }

    fn refuse_unknown(&mut self) {
        let owner = self.level.name();
        let unknown = self.map.keys().filter(|key| !self.asked.contains(key.as_str()));
        let unknown: Vec<_> = unknown.collect();
        for (i, key) in unknown.iter().enumerate() {
            let message = format!("`{owner}` has no option `{key}`");
            let mut fault = Error::new(Code::UnknownOption, message).option(self.level.join(key));
            if let Some(here) = of_elsewhere(key) {
                fault = fault.hint(here);
            } else if let Some(near) = self.nearest(key) {
                fault = fault.hint(format!("did you mean `{near}`?"));
            }
            if i + 1 == unknown.len() {
                let known: Vec<_> = self.asked.iter().map(String::as_str).collect();
                fault = fault.hint(match known.is_empty() {
                    true => format!("{owner} takes no options"),
                    false => format!("{owner} takes: {}", known.join(", ")),
                });
            }
            self.faults.push(fault);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn map(json: serde_json::Value) -> Map {
        let Value::Map(map) = json.into() else { panic!("a map") };
        map
    }

    fn faults(error: &Error) -> Vec<(Code, Option<&str>)> {
        std::iter::once(error).chain(error.others()).map(|e| (e.code(), e.option_path())).collect()
    }

    #[test]
    fn numbers_are_coerced_and_defaults_fill_in() {
        let given = map(
            json!({ "lr": 1, "steps": 1e3, "betas": [0.9, 1], "zero": { "stage": 2 }, "kind": "adamw" }),
        );
        let (lr, steps, betas, stage, eps, kind) = read("f", &given, |o| {
            (
                o.get::<f64>("lr").range(0.0..).required(),
                o.get::<usize>("steps").or(5),
                o.get::<Vec<f64>>("betas").or(vec![]),
                o.map_or_empty("zero", |o| o.get::<u8>("stage").range(0..=3).or(0)),
                o.get::<f64>("eps").or(1e-8),
                o.choice("kind", &[("AdamW", 1), ("SGD", 2)]).required(),
            )
        })
        .unwrap();
        assert_eq!((lr, steps, betas, stage, eps, kind), (1.0, 1000, vec![0.9, 1.0], 2, 1e-8, 1));
    }

    #[test]
    fn every_fault_is_reported_with_its_path() {
        let given = map(json!({
            "lr": "1e-4", "steps": 1.5, "optimizer": { "weigth_decay": 0.1, "betas": [0.9, "x"] },
            "zero": { "stage": 4 }, "precision": "fp8", "schedule": 3,
        }));
        let error = read("init_engine", &given, |o| {
            o.get::<f64>("lr").required();
            o.get::<usize>("steps").or(1);
            o.get::<u64>("seed").required();
            o.map("optimizer", |o| {
                o.get::<f64>("weight_decay").or(0.0);
                o.get::<Vec<f64>>("betas").or(vec![]);
            });
            o.map_or_empty("zero", |o| o.get::<i64>("stage").range(0..=3).or(0));
            o.choice("precision", &[("fp32", 0), ("bf16", 1)]).or(0);
            o.map("schedule", |_| ());
        })
        .unwrap_err();
        assert_eq!(
            faults(&error),
            [
                (Code::WrongType, Some("lr")),
                (Code::WrongType, Some("steps")),
                (Code::Missing, Some("seed")),
                (Code::WrongType, Some("optimizer.betas[1]")),
                (Code::UnknownOption, Some("optimizer.weigth_decay")),
                (Code::BadValue, Some("zero.stage")),
                (Code::BadValue, Some("precision")),
                (Code::WrongType, Some("schedule")),
            ]
        );
        assert_eq!(error.message(), r#"`lr` must be a number, found string "1e-4""#);
        assert_eq!(error.hints(), ["write 1e-4, without quotes"]);
        let unknown = &error.others()[3];
        assert_eq!(unknown.message(), "`optimizer` has no option `weigth_decay`");
        assert_eq!(unknown.hints()[0], "did you mean `weight_decay`?");
        assert_eq!(error.others()[4].message(), "`zero.stage` must be from 0 to 3, found 4");
        assert_eq!(
            error.others()[5].message(),
            r#"`precision` must be one of "fp32", "bf16", found string "fp8""#
        );
    }
}
