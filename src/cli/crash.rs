//! A panic is a mistake in dsr; it becomes one line that says so.
//!
//! Panics that a lower layer catches and turns into an error must stay silent, so the hook only
//! remembers what happened; it is shown if the panic reaches the top.

use std::{
    backtrace::Backtrace,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    error::{Code, Error},
    recipe::Failure,
};

/// Runs `work`; a panic in it becomes an error.
pub(super) fn guard<T>(
    verbose: bool,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let last = Arc::new(Mutex::new(String::new()));
    let note = Arc::clone(&last);
    panic::set_hook(Box::new(move |info| {
        let mut text = info.to_string().replace('\n', " ");
        if verbose {
            text = format!("{text}\n{}", Backtrace::force_capture());
        }
        *note.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    // The hook of the standard library comes back, for what may still go wrong.
    let _ = panic::take_hook();
    outcome.unwrap_or_else(|_| {
        let what = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let message = format!("internal error: {what}");
        Err(Error::new(Code::Internal, message).hint("please report this, with the recipe").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        let failure = guard::<()>(false, || panic!("the tokens are gone")).unwrap_err();
        assert_eq!(failure.code(), Code::Internal);
        assert!(failure.faults[0].error.message().starts_with("internal error: "));
        assert!(guard(false, || Ok(1)).is_ok());
    }
}
