//! Whether anybody still wants the rows that a thread reads.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::error::{Code, Error, Result};

thread_local! {
    /// Set once nobody wants what this thread reads.
    static UNWANTED: RefCell<Arc<AtomicBool>> = RefCell::default();
}

/// Reads on in this thread until `unwanted` is set.
pub(super) fn read_until(unwanted: Arc<AtomicBool>) {
    UNWANTED.set(unwanted);
}

/// Refuses to read on where nobody wants the rows any more.
pub(super) fn check_wanted() -> Result<()> {
    match UNWANTED.with_borrow(|unwanted| unwanted.load(Ordering::Relaxed)) {
        true => Err(Error::new(Code::Interrupted, "nobody waits for these rows")),
        false => Ok(()),
    }
}
