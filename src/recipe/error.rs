//! dsr's error on its way through Rhai and back.
//!
//! A native function that fails throws a value that a recipe can catch, with the properties `kind`,
//! `code`, `message`, `hints` and `option`. The value keeps the typed [`Error`], so an error that
//! nobody catches arrives at the top as it was made. An interruption cannot be caught.

use std::{fmt, rc::Rc};

use rhai::{Array, CustomType, Dynamic, EvalAltResult, Position, TypeBuilder};

use crate::error::{Code, Error};

/// The result of a native function.
pub type ScriptResult<T> = Result<T, Box<EvalAltResult>>;

/// An [`Error`] as a script value.
#[derive(Clone)]
pub(crate) struct ScriptError(pub(crate) Rc<Error>);

impl CustomType for ScriptError {
    fn build(mut builder: TypeBuilder<'_, Self>) {
        builder
            .with_name("Error")
            .with_get("kind", |e: &mut Self| kind(e.0.code()))
            .with_get("code", |e: &mut Self| e.0.code().number().to_owned())
            .with_get("message", |e: &mut Self| e.0.message().to_owned())
            .with_get("hints", |e: &mut Self| -> Array {
                e.0.hints().iter().map(|hint| hint.clone().into()).collect()
            })
            .with_get("option", |e: &mut Self| -> Dynamic {
                e.0.option_path().map_or(Dynamic::UNIT, |path| path.to_owned().into())
            })
            .with_fn("to_string", |e: &mut Self| e.0.to_string())
            .with_fn("to_debug", |e: &mut Self| format!("error[{}]: {}", e.0.code().number(), e.0));
    }
}

impl From<Error> for Box<EvalAltResult> {
    fn from(error: Error) -> Self {
        let interrupted = error.code() == Code::Interrupted;
        let value = Dynamic::from(ScriptError(Rc::new(error)));
        Self::new(if interrupted {
            EvalAltResult::ErrorTerminated(value, Position::NONE)
        } else {
            EvalAltResult::ErrorRuntime(value, Position::NONE)
        })
    }
}

/// The name of a code for scripts: `Code::UnknownOption` is `"unknown_option"`.
fn kind(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

/// A copy of an error that a script still holds. Of its causes only the place, a [`Located`], is kept.
pub(crate) fn duplicate(error: &Error) -> Error {
    let all = std::iter::once(alone(error)).chain(error.others().iter().map(duplicate));
    Error::all(all.collect()).expect("the list begins with the first error")
}

/// A copy of the first of several faults.
fn alone(error: &Error) -> Error {
    let mut copy = Error::new(error.code(), error.message());
    if let Some(path) = error.option_path() {
        copy = copy.option(path);
    }
    for hint in error.hints() {
        copy = copy.hint(hint);
    }
    match Located::of(error) {
        Some(located) => copy.caused_by(located.clone()),
        None => copy,
    }
}

/// Gives an error its place in a script.
pub(crate) trait AtPosition {
    /// The same error, in the source called `source`.
    fn at(self, source: &str, position: Position) -> Self;
}

impl AtPosition for Error {
    fn at(self, source: &str, position: Position) -> Self {
        let frame = Frame { source: source.to_owned(), position, callee: String::new() };
        self.caused_by(Located { frames: vec![frame] })
    }
}

/// The place of an error, known before it reaches the top: carried as its cause.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    /// The innermost frame first.
    pub(crate) frames: Vec<Frame>,
}

/// One step of the way to an error.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// The name of the source.
    pub(crate) source: String,
    /// The position in it.
    pub(crate) position: Position,
    /// The called function; empty for the innermost frame.
    pub(crate) callee: String,
}

impl Located {
    /// The place that an error or one of its causes carries.
    pub(crate) fn of(error: &Error) -> Option<&Self> {
        let mut cause = std::error::Error::source(error);
        while let Some(e) = cause {
            if let Some(located) = e.downcast_ref::<Self>() {
                return Some(located);
            }
            cause = e.source();
        }
        None
    }
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.frames.first() {
            Some(frame) => write!(f, "at {} ({})", frame.source, frame.position),
            None => f.write_str("at an unknown place"),
        }
    }
}

impl std::error::Error for Located {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_names_for_scripts() {
        assert_eq!(kind(Code::UnknownOption), "unknown_option");
        assert_eq!(kind(Code::Io), "io");
    }

    #[test]
    fn a_duplicate_says_the_same() {
        let first = Error::new(Code::WrongType, "m").option("a.b").hint("h");
        let error = Error::all(vec![first, Error::new(Code::Missing, "n")]).expect("two");
        let copy = duplicate(&error);
        assert_eq!(copy.to_string(), error.to_string());
        assert_eq!(copy.option_path(), Some("a.b"));
        assert_eq!(copy.hints(), ["h"]);
    }
}
