//! An option that has been looked up: nothing, a fault, or a value that can be narrowed further.

use std::{fmt::Display, ops::RangeBounds};

use super::{limits::limits, value::quoted};
use crate::error::{Code, Error};

/// The outcome of a look at an option.
#[derive(Debug)]
pub enum Given<T> {
    /// Nothing.
    Absent,
    /// Something wrong, and the fault is recorded.
    Faulty,
    /// A value.
    Value(T),
}

impl<T> Given<T> {
    /// The same with another value in its place, where there is one.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Given<U> {
        match self {
            Self::Absent => Given::Absent,
            Self::Faulty => Given::Faulty,
            Self::Value(value) => Given::Value(make(value)),
        }
    }
}

/// An option that has been looked up and can be narrowed further.
#[must_use = "finish with `required`, `or` or `optional`"]
pub struct Field<'a, T> {
    pub(super) path: String,
    pub(super) value: Given<T>,
    /// The words that it may be.
    pub(super) words: Vec<&'static str>,
    pub(super) faults: &'a mut Vec<Error>,
}

impl<T> Field<'_, T> {
    /// Refuses values outside of `range`.
    pub fn range<R: RangeBounds<T>>(self, range: R) -> Self
    where
        T: PartialOrd + Display,
    {
        let limits = limits(&range);
        self.check(|v| range.contains(v), &limits)
    }

    /// Refuses values for which `holds` is false; `must` completes "`path` must be ...".
    pub fn check(mut self, holds: impl FnOnce(&T) -> bool, must: &str) -> Self
    where
        T: Display,
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
    pub fn required(self) -> T
    where
        T: Default,
    {
        self.required_or_none().unwrap_or_default()
    }

    /// The value, `None` for any fault; its absence is one.
    pub fn required_or_none(mut self) -> Option<T> {
        self.refuse_absence();
        self.optional()
    }

    fn refuse_absence(&mut self) {
        if let Given::Absent = self.value {
            let words = std::mem::take(&mut self.words);
            let fault = missing(&self.path);
            self.faults.push(match words.is_empty() {
                true => fault,
                false => fault.hint(format!("it is one of {}", quoted(words))),
            });
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

pub(super) fn missing(path: &str) -> Error {
    Error::new(Code::Missing, format!("`{path}` is required and missing")).option(path)
}
