//! A panic is a mistake in dsr; it becomes one line that says so.
//!
//! Panics that a lower layer catches and turns into an error must stay silent, so the hook only
//! remembers what happened; it is shown if the panic reaches the top.

use std::{
    backtrace::Backtrace,
    io::Write,
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

/// Says that the system refuses memory, in as many words as need none; returns the exit status.
pub(super) fn exhausted(bytes: usize) -> u8 {
    let mut text = [0; 256];
    let mut room = &mut text[..];
    let code = Code::Memory;
    let said = writeln!(
        room,
        "error[{}]: the system refuses {bytes} bytes of memory\n   = smaller data, or a smaller model, \
         needs less; `ulimit -v` shows a limit of this shell",
        code.number()
    );
    let left = room.len();
    if said.is_ok() {
        // Standard error keeps nothing back, and there is nobody to tell that it is closed.
        let _ = std::io::stderr().write_all(&text[..text.len() - left]);
    }
    code.exit_status()
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
