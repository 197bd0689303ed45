//! Interruption: the first SIGINT, SIGTERM or SIGHUP asks the run to stop, a second SIGINT ends it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
    iterator::Signals,
};

use super::console;
use crate::{
    error::{Code, Error, Result},
    fs,
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
        .and_then(|_| match hears_hangup() {
            true => flag::register(SIGHUP, Arc::clone(&stop)).map(drop),
            false => Ok(()),
        })
        .and_then(|()| Signals::new([SIGINT, SIGTERM]))
        .map(|signals| tell_if_it_takes_long(signals, stop))
        .map_err(|e| Error::new(Code::Internal, "cannot listen for signals").caused_by(e))
}

/// The time after which a stop is told that has not happened yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// Says that a signal was heard, where what is under way takes long. The flag is clear again where it has
/// ended.
fn tell_if_it_takes_long(mut signals: Signals, stop: Arc<AtomicBool>) {
    thread::spawn(move || {
        while signals.forever().next().is_some() {
            thread::sleep(PATIENCE);
            // A later signal may be about what came after.
            while signals.pending().next().is_some() {
                thread::sleep(PATIENCE);
            }
            if stop.load(Ordering::Relaxed) {
                console::err(
                    "stopping as soon as what is under way is done; Ctrl-C again ends at once\n",
                );
            }
        }
    });
}

/// Whether the end of the terminal is this program's business: `nohup` has it ignored.
pub(super) fn hears_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & (1 << (SIGHUP - 1)) == 0
}

/// Installs the handler of a session, in which SIGINT stops what runs, however often it comes, and
/// nothing else.
pub(super) fn install_for_session(interrupt: &Interrupt) -> Result<()> {
    flag::register(SIGINT, interrupt.flag())
        .map(drop)
        .map_err(|e| Error::new(Code::Internal, "cannot listen for signals").caused_by(e))
}
