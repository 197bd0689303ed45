//! Waiting for the network until the user interrupts.
//!
//! A server may say nothing for a minute. Where somebody may want to stop, what waits does so on
//! another thread, and this one looks for the wish twenty times a second. Work that is given up ends
//! when its own time is out.

use std::{
    sync::mpsc::{RecvTimeoutError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use crate::error::{Code, Error, Result, StopWhen};

const LOOK: Duration = Duration::from_millis(50);

/// Whether somebody may want to stop, and how to know.
#[derive(Clone, Default)]
pub(super) struct Patience(Option<StopWhen>);

impl Patience {
    pub(super) fn until(stop: StopWhen) -> Self {
        Self(Some(stop))
    }

    /// Returns the result of `work`.
    ///
    /// # Errors
    /// [`Code::Interrupted`] where the user does not wait for it.
    pub(super) fn wait_for<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let Some(stop) = &self.0 else { return Ok(work()) };
        let (done, result) = sync_channel(1);
        thread::spawn(move || {
            // Nobody may be waiting any more.
            let _ = done.send(work());
        });
        loop {
            match result.recv_timeout(LOOK) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Timeout) if stop() => return Err(given_up()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(Code::Internal, "a request ended without a word"));
                }
            }
        }
    }

    /// Waits for so long.
    pub(super) fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            if self.0.as_ref().is_some_and(|stop| stop()) {
                return Err(given_up());
            }
            thread::sleep(if self.0.is_some() { left.min(LOOK) } else { left });
        }
        Ok(())
    }
}

fn given_up() -> Error {
    Error::interrupted()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn work_that_takes_too_long_is_given_up() {
        let began = Instant::now();
        let patience =
            Patience::until(Arc::new(move || began.elapsed() > Duration::from_millis(100)));
        assert_eq!(patience.wait_for(|| 1).unwrap(), 1);
        let slow = patience.wait_for(|| thread::sleep(Duration::from_secs(30)));
        assert_eq!(slow.unwrap_err().code(), Code::Interrupted);
        assert_eq!(patience.sleep(Duration::from_secs(30)).unwrap_err().code(), Code::Interrupted);
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
