//! Faults with their places, from the errors of Rhai.
//!
//! Rhai nests an error once for every script function on the way out. `diagnose` unwinds that
//! nest to the innermost position, turns Rhai's own errors into dsr's, and finds the place of every
//! fault: an option's key, a callback's line. The result is plain data for the command line to draw.

use rhai::{EvalAltResult, Position};

use super::{
    embedded::EMBEDDED,
    error::{Frame, Located, ScriptError, duplicate},
    habits::answered,
    locate::{self, OptionPart},
    sources::{Location, Sources},
    translate::translate,
};
use crate::error::{Code, Error};

/// A failed script: its faults, each with its place, and the calls on the way to them.
#[derive(Debug)]
pub struct Failure {
    /// At least one; several when mistakes were found together.
    pub faults: Vec<Fault>,
    /// The calls around the first fault, innermost first.
    pub calls: Vec<Call>,
}

/// A fault.
#[derive(Debug)]
pub struct Fault {
    /// The error.
    pub error: Error,
    /// The place, if it is in a script.
    pub place: Option<Location>,
}

/// One call on the way to a fault.
#[derive(Debug)]
pub struct Call {
    /// The called function.
    pub callee: String,
    /// The place of the call.
    pub place: Location,
}

impl Failure {
    /// The code of the first fault, which decides the exit status.
    pub fn code(&self) -> Code {
        self.faults[0].error.code()
    }

    /// Fails with all `faults`, if there are any.
    pub(crate) fn check(faults: Vec<Error>, sources: &Sources) -> Result<(), Self> {
        Error::all(faults).map_or(Ok(()), |e| Err(Self::of(e, &[], sources)))
    }

    /// Places the faults of `error`, which came up through `outer`.
    pub(crate) fn of(error: Error, outer: &[Frame], sources: &Sources) -> Self {
        let located = Located::of(&error).map(|l| l.frames.clone()).unwrap_or_default();
        let frames: Vec<_> = located.iter().chain(outer).collect();
        let calls = frames.iter().skip(1).filter_map(|frame| {
            let place = sources.place(&frame.source, frame.position)?;
            Some(Call { callee: frame.callee.clone(), place })
        });
        let calls = calls.collect();
        let faults = error.split().into_iter().map(|error| {
            let place = place(&error, outer, sources);
            let (error, place) = answered(error, place);
            Fault { error, place }
        });
        let mut faults: Vec<Fault> = faults.collect();
        // As a reader goes through the text, the recipe's own before those of its imports.
        let first = faults[0].place.as_ref().map(|place| place.source.name.clone());
        faults.sort_by_key(|Fault { place, .. }| {
            let place = place.as_ref();
            let is_own = place.is_some_and(|place| Some(&place.source.name) == first.as_ref());
            (!is_own, is_own.then(|| place.map(|place| (place.line, place.column))))
        });
        Self { faults, calls }
    }
}

impl From<Error> for Failure {
    /// A failure with no place in a script, unless the error carries one that needs no sources.
    fn from(error: Error) -> Self {
        Self::of(error, &[], &Sources::default())
    }
}

/// The failure for the error that ended the source `main`.
pub(crate) fn diagnose(
    engine: &rhai::Engine,
    error: EvalAltResult,
    main: &str,
    sources: &Sources,
) -> Failure {
    let (inner, frames) = unwind(error, main);
    Failure::of(typed(engine, inner), &frames, sources)
}

/// A script error on its way through Rust, with its place.
pub(crate) fn seal(engine: &rhai::Engine, error: EvalAltResult, source: &str) -> Error {
    let (inner, frames) = unwind(error, source);
    let faults = typed(engine, inner).split().into_iter().map(|error| {
        let inner = Located::of(&error).map(|l| l.frames.clone()).unwrap_or_default();
        error.caused_by(Located { frames: inner.into_iter().chain(frames.clone()).collect() })
    });
    Error::all(faults.collect()).expect("an error splits into at least one")
}

/// The innermost error and the way to it, innermost frame first.
fn unwind(error: EvalAltResult, main: &str) -> (EvalAltResult, Vec<Frame>) {
    let mut error = error;
    let mut source = main.to_owned();
    let mut frames = Vec::new();
    loop {
        let (callee, inside, inner, position) = match error {
            EvalAltResult::ErrorInFunctionCall(callee, inside, inner, position) => {
                (callee, inside, inner, position)
            }
            EvalAltResult::ErrorInModule(module, inner, position) => {
                (format!("import \"{module}\""), module, inner, position)
            }
            _ => break,
        };
        frames.push(Frame { source: source.clone(), position, callee });
        if !inside.is_empty() {
            source = inside;
        }
        error = *inner;
    }
    let position = error.position();
    if !position.is_none() || frames.is_empty() {
        frames.push(Frame { source, position, callee: String::new() });
    }
    frames.reverse();
    (error, frames)
}

/// dsr's error for an innermost Rhai error.
pub(super) fn typed(engine: &rhai::Engine, error: EvalAltResult) -> Error {
    match error {
        EvalAltResult::ErrorRuntime(ref value, _)
        | EvalAltResult::ErrorTerminated(ref value, _) => {
            match value.clone().try_cast::<ScriptError>() {
                Some(ScriptError(error)) => duplicate(&error),
                None => translate(engine, &error),
            }
        }
        other => translate(engine, &other),
    }
}

/// The place of a fault: the option that it names, in the innermost call whose arguments show it, else
/// anywhere in the source, else the innermost position.
fn place(error: &Error, outer: &[Frame], sources: &Sources) -> Option<Location> {
    let located = Located::of(error).map(|l| l.frames.as_slice()).unwrap_or_default();
    if let Some(frame) = located.first()
        && sources.ast(&frame.source).is_none()
        && let Some(place) = sources.place(&frame.source, frame.position)
    {
        // A file that is no script has no calls to look for the option in.
        return Some(place);
    }
    let mut frames: Vec<_> = located.iter().chain(outer).collect();
    if error.option_path().is_some() {
        // Options that a module of dsr reads are the recipe's.
        let (users, own): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|frame| !frame.source.starts_with(EMBEDDED));
        frames = if users.is_empty() { own } else { users };
    }
    let search = |find: &dyn Fn(&rhai::AST, Position) -> Option<Position>| {
        frames.iter().find_map(|frame| {
            let ast = sources.ast(&frame.source)?;
            let position = find(&ast, frame.position)?;
            sources.place(&frame.source, position)
        })
    };
    let by_option = error.option_path().and_then(|path| {
        let part = match error.code() {
            Code::UnknownOption | Code::Missing => OptionPart::Key,
            _ => OptionPart::Value,
        };
        let in_call = search(&|ast, call| locate::in_call(ast, call, path, part));
        // An option that is missing in the call may be written elsewhere.
        let missing = error.code() == Code::Missing;
        in_call.or_else(|| search(&|ast, _| locate::anywhere(ast, path)).filter(|_| !missing))
    });
    by_option.or_else(|| frames.iter().find_map(|f| sources.place(&f.source, f.position)))
}
