//! Whether anybody still wants the rows that a thread reads.

use std::{
    cell::RefCell,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::error::{Code, Error, Result, StopWhen};

thread_local! {
    /// Set once nobody wants what this thread reads.
    static UNWANTED: RefCell<Arc<AtomicBool>> = RefCell::default();
    /// Of the source that this thread reads, as long as it reads.
    static STOP: RefCell<Option<Weak<dyn Fn() -> bool + Send + Sync>>> = const { RefCell::new(None) };
}

/// Reads on in this thread until `stop` says so.
pub(super) fn ask(stop: Option<&StopWhen>) {
    STOP.set(stop.map(Arc::downgrade));
}

/// Reads on in this thread until `unwanted` is set.
pub(super) fn read_until(unwanted: Arc<AtomicBool>) {
    UNWANTED.set(unwanted);
}

/// Refuses to read on where nobody wants the rows any more.
pub(super) fn check_wanted() -> Result<()> {
    let stop = STOP.with_borrow(|stop| stop.as_ref()?.upgrade());
    if stop.is_some_and(|stop| stop()) {
        return Err(Error::interrupted());
    }
    match UNWANTED.with_borrow(|unwanted| unwanted.load(Ordering::Relaxed)) {
        true => Err(Error::new(Code::Interrupted, "nobody waits for these rows")),
        false => Ok(()),
    }
}
