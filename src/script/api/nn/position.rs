//! The place of a call such as `nn::linear(x, w)` in its errors.

use rhai::NativeCallContext;

use crate::recipe::error::ScriptResult;

/// Gives an error of `work` the place of the call. Rhai does so itself, but not where a function is
/// called with the name of its group.
pub(super) fn at_call<T>(
    ctx: &NativeCallContext<'_>,
    work: impl FnOnce() -> ScriptResult<T>,
) -> ScriptResult<T> {
    work().map_err(|mut e| {
        if e.position().is_none() {
            e.set_position(ctx.call_position());
        }
        e
    })
}
