//! Interruption: the first SIGINT or SIGTERM asks the run to stop, a second SIGINT ends it.

use std::sync::Arc;

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::{
    error::{Code, Error, Result},
    run::Interrupt,
};

/// Installs the handlers; the flag is set by the first signal.
pub(super) fn install(interrupt: &Interrupt) -> Result<()> {
    let stop = interrupt.flag();
    let status = i32::from(Code::Interrupted.exit_status());
    // Handlers run in the order of their registration: the first one finds the flag as the signal
    // before left it.
    flag::register_conditional_shutdown(SIGINT, status, Arc::clone(&stop))
        .and_then(|_| flag::register(SIGINT, Arc::clone(&stop)))
        .and_then(|_| flag::register(SIGTERM, Arc::clone(&stop)))
        .map(drop)
        .map_err(|e| Error::new(Code::Internal, "cannot listen for signals").caused_by(e))
}

/// Installs the handler of a session, in which SIGINT stops what runs, however often it comes, and
/// nothing else.
pub(super) fn install_for_session(interrupt: &Interrupt) -> Result<()> {
    flag::register(SIGINT, interrupt.flag())
        .map(drop)
        .map_err(|e| Error::new(Code::Internal, "cannot listen for signals").caused_by(e))
}
