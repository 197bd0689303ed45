//! The strict reader of option maps: `init_engine(model, #{ ... })`.
//!
//! A map from a script becomes a plain struct of the layer below, or *all* of its mistakes as one
//! error: unknown keys (with the nearest known one), wrong types, values out of range, missing
//! keys, each with its dotted path. Numbers are coerced: `1` is a float where a float is asked for,
//! and `1e3` a whole number.
//!
//! Getters always give a value, so that reading goes on after a fault; a value that stands in for
//! a faulty one never leaves [`read`], which then returns the error.

use std::{collections::BTreeSet, ops::RangeBounds};

use rhai::{Dynamic, Map};

use super::{
    error::split,
    value::{self, OptionValue},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
};

/// Reads the trailing option map of the function `owner`: `fields` asks for every option that
/// exists, and what it did not ask for is refused.
pub fn read<T>(owner: &str, map: &Map, fields: impl FnOnce(&mut Options<'_>) -> T) -> Result<T> {
    let mut faults = Vec::new();
    let value = Options::read_map(Level { owner, path: "" }, map, &mut faults, fields);
    Error::all(faults).map_or(Ok(value), Err)
}

/// One level of an option map while it is read.
pub struct Options<'a> {
    level: Level<'a>,
    map: &'a Map,
    asked: BTreeSet<String>,
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
        let mut options = Options { level, map, asked: BTreeSet::new(), faults };
        let value = fields(&mut options);
        options.refuse_unknown();
        value
    }

    /// An option of any type that [`OptionValue`] covers.
    pub fn get<T: OptionValue>(&mut self, key: &'static str) -> Field<'_, T> {
        let path = self.ask(key);
        let read = self.map.get(key).map(T::read);
        let value = self.record(&path, read);
        Field { path, value, stand_in: T::stand_in, faults: &mut *self.faults }
    }

    /// An option that is one of a few words. Case does not matter.
    pub fn choice<T: Copy + 'static>(
        &mut self,
        key: &'static str,
        choices: &'static [(&'static str, T)],
    ) -> Choice<'_, T> {
        let path = self.ask(key);
        let read = self.map.get(key).map(|found| value::read_choice(found, choices));
        let value = self.record(&path, read);
        Choice { path, value, choices, faults: &mut *self.faults }
    }

    /// A map inside this one, read by `fields`; `None` when the key is absent.
    pub fn map<T>(
        &mut self,
        key: &'static str,
        fields: impl FnOnce(&mut Options<'_>) -> T,
    ) -> Option<T> {
        let path = self.ask(key);
        let found = self.map.get(key)?;
        let level = Level { owner: self.level.owner, path: &path };
        if let Ok(inner) = found.as_map_ref() {
            return Some(Options::read_map(level, &inner, self.faults, fields));
        }
        let found = value::describe(found);
        let fault = Error::new(Code::WrongType, format!("`{path}` must be a map, found {found}"));
        self.faults.push(fault.option(&path).hint(format!("write {key}: #{{ ... }}")));
        None
    }

    /// Like [`map`](Self::map), but an absent key counts as an empty map.
    pub fn map_or_empty<T>(
        &mut self,
        key: &'static str,
        fields: impl FnOnce(&mut Options<'_>) -> T,
    ) -> T {
        // A value that is not a map is a fault already; what else is wrong in it is unknown.
        let mut unseen = Vec::new();
        let path = self.ask(key);
        let level = Level { owner: self.level.owner, path: &path };
        match self.map.get(key).map(|found| (found, found.as_map_ref())) {
            None => Options::read_map(level, &Map::new(), self.faults, fields),
            Some((_, Ok(inner))) => Options::read_map(level, &inner, self.faults, fields),
            Some((found, Err(_))) => {
                let found = value::describe(found);
                let message = format!("`{path}` must be a map, found {found}");
                self.faults.push(Error::new(Code::WrongType, message).option(&path));
                Options::read_map(level, &Map::new(), &mut unseen, fields)
            }
        }
    }

    /// A list of maps inside this one, each read by `fields`; empty when the key is absent.
    pub fn maps<T>(
        &mut self,
        key: &'static str,
        mut fields: impl FnMut(&mut Options<'_>) -> T,
    ) -> Vec<T> {
        let path = self.ask(key);
        let Some(found) = self.map.get(key) else { return Vec::new() };
        let Ok(items) = found.as_array_ref() else {
            let found = value::describe(found);
            let message = format!("`{path}` must be a list of maps, found {found}");
            let fault = Error::new(Code::WrongType, message).option(&path);
            self.faults.push(fault.hint(format!("write {key}: [#{{ ... }}]")));
            return Vec::new();
        };
        let mut read = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let level = Level { owner: self.level.owner, path: &path };
            match item.as_map_ref() {
                Ok(map) => read.push(Options::read_map(level, &map, self.faults, &mut fields)),
                Err(_) => {
                    let message =
                        format!("`{path}` must be a map, found {}", value::describe(item));
                    self.faults.push(Error::new(Code::WrongType, message).option(&path));
                }
            }
        }
        read
    }

    /// An option of the type that `like` has, `()` for any; `like` itself where the option is absent and
    /// not required. A map with keys is read key by key.
    pub fn like(&mut self, key: &str, like: &Dynamic, is_required: bool) -> Dynamic {
        let path = self.level.join(key);
        self.asked.insert(key.to_owned());
        let Some(found) = self.map.get(key) else {
            if is_required {
                self.faults.push(missing(&path));
            }
            return like.clone();
        };
        if let (Ok(like), Ok(found)) = (like.as_map_ref(), found.as_map_ref())
            && !like.is_empty()
        {
            let level = Level { owner: self.level.owner, path: &path };
            return Dynamic::from_map(Options::read_map(level, &found, self.faults, |o| {
                like.iter().map(|(key, like)| (key.clone(), o.like(key, like, false))).collect()
            }));
        }
        match self.record(&path, Some(value::read_like(found, like))) {
            Given::Value(value) => value,
            Given::Absent | Given::Faulty => like.clone(),
        }
    }

    /// The script value itself, for what only a binding understands (a handle, a function).
    pub fn raw(&mut self, key: &'static str) -> Option<Dynamic> {
        self.ask(key);
        self.map.get(key).cloned()
    }

    /// A handle such as a loader; `what` completes "`path` must be ...".
    pub fn handle<T: Clone + 'static>(&mut self, key: &'static str, what: &str) -> Option<T> {
        let found = self.raw(key)?;
        let handle = found.clone().try_cast::<T>();
        if handle.is_none() {
            let found = value::describe(&found);
            self.fault(key, Code::WrongType, format!("`{key}` must be {what}, found {found}"));
        }
        handle
    }

    /// The value as the script gave it; its absence is a fault.
    pub fn raw_required(&mut self, key: &'static str) -> Option<Dynamic> {
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

    /// Accepts whatever else the map holds, where a fault leaves unknown what it may hold.
    pub fn accept_rest(&mut self) {
        self.asked.extend(self.map.keys().map(ToString::to_string));
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
        self.map.get(key).is_some_and(Dynamic::is_map)
    }

    /// Adds a fault that the values together make, at the option `key`.
    pub fn fault(&mut self, key: &str, code: Code, message: impl Into<String>) {
        let path = self.level.join(key);
        self.faults.push(Error::new(code, message).option(path));
    }

    /// Adds a validated layer's own faults, whose option paths start at this level.
    pub fn check<T>(&mut self, result: Result<T>) -> Option<T> {
        let error = match result {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        for fault in split(error) {
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

    fn record<T>(&mut self, path: &str, read: Option<value::Read<T>>) -> Given<T> {
        match read {
            None => Given::Absent,
            Some(Ok(value)) => Given::Value(value),
            Some(Err(wrong)) => {
                self.faults.push(wrong.into_error(path));
                Given::Faulty
            }
        }
    }

    fn refuse_unknown(&mut self) {
        let owner = self.level.name();
        for key in self.map.keys().filter(|key| !self.asked.contains(key.as_str())) {
            let message = format!("`{owner}` has no option `{key}`");
            let mut fault = Error::new(Code::UnknownOption, message).option(self.level.join(key));
            if let Some(near) = nearest(key, self.asked.iter().map(String::as_str)) {
                fault = fault.hint(format!("did you mean `{near}`?"));
            }
            let known: Vec<_> = self.asked.iter().map(String::as_str).collect();
            fault = fault.hint(match known.is_empty() {
                true => format!("{owner} takes no options"),
                false => format!("{owner} takes: {}", known.join(", ")),
            });
            self.faults.push(fault);
        }
    }
}

/// What the map said about an option.
enum Given<T> {
    Absent,
    /// Present and wrong; the fault is recorded.
    Faulty,
    Value(T),
}

/// An option that has been looked up and can be narrowed further.
#[must_use = "finish with `required`, `or` or `optional`"]
pub struct Field<'a, T> {
    path: String,
    value: Given<T>,
    stand_in: fn() -> T,
    faults: &'a mut Vec<Error>,
}

impl<T> Field<'_, T> {
    /// Refuses values outside of `range`.
    pub fn range<R: RangeBounds<T>>(self, range: R) -> Self
    where
        T: PartialOrd + std::fmt::Display,
    {
        let limits = value::limits(&range);
        self.check(|v| range.contains(v), &limits)
    }

    /// Refuses values for which `holds` is false; `must` completes "`path` must be ...".
    pub fn check(mut self, holds: impl FnOnce(&T) -> bool, must: &str) -> Self
    where
        T: std::fmt::Display,
    {
        if let Given::Value(v) = &self.value
            && !holds(v)
        {
            let message = format!("`{}` must be {must}, found {v}", self.path);
            self.faults.push(Error::new(Code::BadValue, message).option(&self.path));
            self.value = Given::Faulty;
        }
        self
    }

    /// The value; its absence is a fault.
    pub fn required(self) -> T {
        let Field { path, value, stand_in, faults } = self;
        match value {
            Given::Value(v) => v,
            Given::Faulty => stand_in(),
            Given::Absent => {
                faults.push(missing(&path));
                stand_in()
            }
        }
    }

    /// The value, or this one when it is absent.
    pub fn or(self, default: T) -> T {
        self.optional().unwrap_or(default)
    }

    /// The value, if it is there.
    pub fn optional(self) -> Option<T> {
        match self.value {
            Given::Value(v) => Some(v),
            Given::Absent | Given::Faulty => None,
        }
    }
}

/// A looked-up option that is one of a few words.
#[must_use = "finish with `required`, `or` or `optional`"]
pub struct Choice<'a, T: 'static> {
    path: String,
    value: Given<T>,
    choices: &'static [(&'static str, T)],
    faults: &'a mut Vec<Error>,
}

impl<T: Copy> Choice<'_, T> {
    /// The chosen value; its absence is a fault.
    pub fn required(self) -> T {
        let stand_in = self.choices[0].1;
        self.required_or_none().unwrap_or(stand_in)
    }

    /// The chosen value; its absence is a fault, and any fault is `None`.
    pub fn required_or_none(self) -> Option<T> {
        if let Given::Absent = self.value {
            let words = value::words(self.choices);
            self.faults.push(missing(&self.path).hint(format!("it is one of {words}")));
        }
        self.optional()
    }

    /// The chosen value, or this one when the option is absent.
    pub fn or(self, default: T) -> T {
        self.optional().unwrap_or(default)
    }

    /// The chosen value, if the option is there.
    pub fn optional(self) -> Option<T> {
        match self.value {
            Given::Value(v) => Some(v),
            Given::Absent | Given::Faulty => None,
        }
    }
}

fn missing(path: &str) -> Error {
    Error::new(Code::Missing, format!("`{path}` is required and missing")).option(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(source: &str) -> Map {
        rhai::Engine::new().eval(source).unwrap()
    }

    fn faults(error: &Error) -> Vec<(Code, Option<&str>)> {
        std::iter::once(error).chain(error.others()).map(|e| (e.code(), e.option_path())).collect()
    }

    #[test]
    fn numbers_are_coerced_and_defaults_fill_in() {
        let given =
            map(r#"#{ lr: 1, steps: 1e3, betas: [0.9, 1], zero: #{ stage: 2 }, kind: "adamw" }"#);
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
        let given = map(
            r#"#{ lr: "1e-4", steps: 1.5, optimizer: #{ weigth_decay: 0.1, betas: [0.9, "x"] },
                  zero: #{ stage: 4 }, precision: "fp8", schedule: 3 }"#,
        );
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
