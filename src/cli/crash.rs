//! A panic is a mistake in dsr; it becomes one line that says so.
//!
//! Panics that a lower layer catches and turns into an error must stay silent, so the hook only
//! remembers what happened; it is shown if the panic reaches the top.

use std::{
    backtrace::Backtrace,
    io::Write,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Mutex, PoisonError},
    thread,
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
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let mut text = info.to_string().replace('\n', " ");
        if verbose {
            text = format!("{text}\n{}", Backtrace::force_capture());
        }
        *note.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }));
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    // The usual hook comes back for what this thread still does. Others, which the end of the process
    // does not wait for, may still be in what their own guards catch.
    let here = thread::current().id();
    panic::set_hook(Box::new(move |info| {
        if thread::current().id() == here {
            usual(info);
        }
    }));
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// One test, as there is one hook for all threads.
    #[test]
    fn a_panic_becomes_an_error_and_is_silent_in_threads_that_are_left() {
        static SHOWN: AtomicUsize = AtomicUsize::new(0);
        let outer = panic::take_hook();
        panic::set_hook(Box::new(|_| _ = SHOWN.fetch_add(1, Ordering::Relaxed)));
        let failure = guard::<()>(false, || panic!("the tokens are gone")).unwrap_err();
        assert_eq!(failure.code(), Code::Internal);
        assert!(failure.faults[0].error.message().starts_with("internal error: "));
        assert!(guard(false, || Ok(1)).is_ok());
        assert!(thread::spawn(|| panic!("left")).join().is_err());
        assert_eq!(SHOWN.load(Ordering::Relaxed), 0);
        assert!(panic::catch_unwind(|| panic!("here")).is_err());
        assert_eq!(SHOWN.load(Ordering::Relaxed), 1);
        panic::set_hook(outer);
    }
}
