//! A thread that makes things ahead of a reader.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{Builder, JoinHandle},
    time::Duration,
};

use super::wanted::{check_wanted, read_until};
use crate::error::Result;

/// How often a reader that waits asks whether it still wants what is made.
const PATIENCE: Duration = Duration::from_millis(20);

/// The thread and what it has made; dropped, it ends.
pub(super) struct Worker<T> {
    /// `None` only while it is dropped.
    made: Option<Receiver<T>>,
    thread: Option<JoinHandle<()>>,
    unwanted: Arc<AtomicBool>,
}

impl<T: Send + 'static> Worker<T> {
    /// Runs `work`, which hands over what it makes until it is refused; `waiting` of it wait at most,
    /// and one more in the thread's hand.
    pub(super) fn start(
        name: &str,
        waiting: usize,
        work: impl FnOnce(&SyncSender<T>) + Send + 'static,
    ) -> io::Result<Self> {
        let (ready, made) = sync_channel(waiting);
        let unwanted = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&unwanted);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            read_until(flag);
            work(&ready);
        })?;
        Ok(Self { made: Some(made), thread: Some(thread), unwanted })
    }

    /// The next, waited for; `None` where the thread has ended.
    pub(super) fn next(&self) -> Option<T> {
        self.made.as_ref()?.recv().ok()
    }

    /// The next, waited for as long as this thread still wants it; `None` where the thread has ended.
    pub(super) fn next_if_wanted(&self) -> Result<Option<T>> {
        let Some(made) = &self.made else { return Ok(None) };
        loop {
            match made.recv_timeout(PATIENCE) {
                Ok(made) => return Ok(Some(made)),
                Err(RecvTimeoutError::Timeout) => check_wanted()?,
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.unwanted.store(true, Ordering::Relaxed);
        // A thread that waits to hand something over is refused.
        self.made = None;
        if let Some(thread) = self.thread.take() {
            // Waited for, so that none is inside libtorch while the process ends. Panics are caught.
            let _ = thread.join();
        }
    }
}
