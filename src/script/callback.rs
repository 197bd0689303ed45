//! Script functions that Rust keeps and calls later: `|row| row.text.len > 0`.
//!
//! A lazy dataset runs its closures long after the call that took them has returned. A
//! [`Callback`] therefore carries the context of the closure, with a weak reference to the Rhai engine.
//! Its errors are dsr's own, with the place inside the closure.
//!
//! Captured handles are kept as they are when the closure is passed on: after
//! `ds = ds.filter(|row| row.n < ds.count())` the closure still sees the dataset before the filter.
//! Other captured variables stay shared, as everywhere in Rhai.

use std::{
    cell::Cell,
    ops::RangeInclusive,
    rc::{Rc, Weak},
};

#[allow(deprecated, reason = "Rhai marks the type as one that may change, and dsr pins Rhai")]
use rhai::NativeCallContextStore;
use rhai::{Dynamic, FnPtr, FuncArgs, NativeCallContext};

use super::host;
use crate::{
    error::{Code, Error, Result},
    recipe::{
        diagnostics,
        error::AtPosition,
        value::{describe, is_handle},
    },
};

/// The most entries of a function while it runs; the Rust stack ends far later.
const MOST_ENTRIES: usize = 16;

/// A script function with the context that it was made in.
#[derive(Clone)]
pub struct Callback {
    function: FnPtr,
    #[allow(deprecated, reason = "see the import")]
    context: Rc<NativeCallContextStore>,
    engine: Weak<rhai::Engine>,
    /// The number of its arguments, if that can be told.
    arity: Option<usize>,
    /// Calls that have not returned yet.
    entries: Rc<Cell<usize>>,
}

impl Callback {
    /// Keeps `function`, which a script passed to the call `ctx`.
    #[allow(deprecated, reason = "see the import")]
    pub fn new(ctx: &NativeCallContext, mut function: FnPtr) -> Result<Self> {
        let engine = host::of(ctx)?.program.engine();
        for captured in function.iter_curry_mut() {
            if captured.is_shared() && !captured.is_locked() && is_handle(captured) {
                *captured = captured.flatten_clone();
            }
        }
        let (context, entries) = (Rc::new(ctx.store_data()), Rc::default());
        let arity = arity(ctx, &function);
        Ok(Self { function, context, engine, arity, entries })
    }

    /// Refuses a function that takes another number of arguments than `counts`, which are `shown`.
    pub(super) fn taking(self, counts: RangeInclusive<usize>, shown: &str) -> Result<Self> {
        match self.arity {
            Some(arity) if !counts.contains(&arity) => {
                let message =
                    format!("the function must be {shown}, found one of {arity} arguments");
                Err(Error::new(Code::WrongType, message))
            }
            _ => Ok(self),
        }
    }

    /// Calls the function with as many of `args` as it takes.
    pub(super) fn call_with(&self, mut args: Vec<Dynamic>) -> Result<Dynamic> {
        args.truncate(self.arity.unwrap_or(args.len()));
        self.call(args)
    }

    /// Calls the function, which must take so many arguments.
    pub fn call(&self, args: impl FuncArgs) -> Result<Dynamic> {
        let mut values = Vec::new();
        args.parse(&mut values);
        if let Some(arity) = self.arity
            && arity != values.len()
        {
            let counted = |n: usize| match n {
                0 => "no arguments".to_owned(),
                1 => "one argument".to_owned(),
                n => format!("{n} arguments"),
            };
            let (taken, given) = (counted(arity), counted(values.len()));
            let message = format!("the function takes {taken}, and is called with {given}");
            return Err(Error::new(Code::WrongType, message));
        }
        if self.entries.get() == MOST_ENTRIES {
            return Err(Error::new(Code::Recipe, "a function runs itself without an end")
                .hint("it uses a dataset that is made with this same function"));
        }
        self.entries.update(|n| n + 1);
        let result = self.enter(values);
        self.entries.update(|n| n - 1);
        result
    }

    #[allow(deprecated, reason = "see the import")]
    fn enter(&self, args: Vec<Dynamic>) -> Result<Dynamic> {
        let engine = self.engine.upgrade().ok_or_else(|| {
            Error::new(Code::Internal, "a script function was called after its script had ended")
        })?;
        let ctx = self.context.create_context(&engine);
        self.function
            .call_within_context(&ctx, args)
            .map_err(|e| diagnostics::seal(&engine, *e, ctx.call_source().unwrap_or_default()))
    }

    /// Gives an error of a result the place of the call that took the function.
    #[allow(deprecated, reason = "see the import")]
    pub(super) fn at_its_call(&self, error: Error) -> Error {
        error.at(self.context.global.source().unwrap_or_default(), self.context.pos)
    }

    /// Calls the function, whose result must be `true` or `false`; `what` names it in errors.
    pub fn call_predicate(&self, what: &str, args: impl FuncArgs) -> Result<bool> {
        let result = self.call(args)?;
        result.as_bool().map_err(|_| {
            let found = describe(&result);
            Error::new(Code::WrongType, format!("{what} must return true or false, found {found}"))
        })
    }
}

/// The number of arguments of a function of the script, without captured ones.
fn arity(ctx: &NativeCallContext, function: &FnPtr) -> Option<usize> {
    let scripts = ctx.iter_namespaces().flat_map(|module| module.iter_script_fn_info());
    let named = scripts.filter(|(_, _, name, ..)| *name == function.fn_name());
    let mut counts = named.map(|(_, _, _, count, _)| count);
    let count = counts.next()?;
    // Several functions may have the name.
    counts.all(|other| other == count).then(|| count.saturating_sub(function.curry().len()))
}
