//! Script functions that Rust keeps and calls later: `|row| row.text.len > 0`.
//!
//! A lazy dataset runs its closures long after the call that took them has returned. A
//! [`Callback`] therefore carries all that the closure needs except the Rhai engine itself, which
//! it only refers to weakly. Its errors are dsr's own and remember the place inside the closure.

use std::rc::{Rc, Weak};

#[allow(deprecated, reason = "Rhai marks the type as one that may change, and dsr pins Rhai")]
use rhai::NativeCallContextStore;
use rhai::{Dynamic, FnPtr, FuncArgs, NativeCallContext};

use super::{diagnostics, host};
use crate::error::{Code, Error, Result};

/// A script function together with the surroundings that it was made in.
#[derive(Clone)]
pub struct Callback {
    function: FnPtr,
    #[allow(deprecated, reason = "see the import")]
    context: Rc<NativeCallContextStore>,
    engine: Weak<rhai::Engine>,
}

impl Callback {
    /// Keeps `function`, which a script passed to the call `ctx`.
    #[allow(deprecated, reason = "see the import")]
    pub fn new(ctx: &NativeCallContext, function: FnPtr) -> Result<Self> {
        let engine = host::of(ctx)?.engine.borrow().clone();
        Ok(Self { function, context: Rc::new(ctx.store_data()), engine })
    }

    /// Calls the function.
    #[allow(deprecated, reason = "see the import")]
    pub fn call(&self, args: impl FuncArgs) -> Result<Dynamic> {
        let engine = self.engine.upgrade().ok_or_else(|| {
            Error::new(Code::Internal, "a script function was called after its script had ended")
        })?;
        let ctx = self.context.create_context(&engine);
        self.function
            .call_within_context(&ctx, args)
            .map_err(|e| diagnostics::seal(&engine, *e, ctx.call_source().unwrap_or_default()))
    }

    /// Calls the function, whose result must be `true` or `false`; `what` names it in errors.
    pub fn call_predicate(&self, what: &str, args: impl FuncArgs) -> Result<bool> {
        let result = self.call(args)?;
        result.as_bool().map_err(|found| {
            Error::new(Code::WrongType, format!("{what} must return true or false, found {found}"))
        })
    }
}
