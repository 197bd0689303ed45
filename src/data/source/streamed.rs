//! A file of the hub that is here only while its rows are read.

use std::{
    fmt, io,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{Builder, sleep},
    time::Duration,
};

use crate::{
    data::wanted::{check_wanted, read_until},
    error::{IoContext, Result, StopWhen},
    fs::{self, File, Place, path_of},
    hub::RemoteFile,
};

/// How often a reader that waits for a download asks whether it still wants the rows.
const PATIENCE: Duration = Duration::from_millis(20);

/// The file, held open while it is here.
pub(super) struct Streamed {
    remote: Box<RemoteFile>,
    held: Mutex<Option<File>>,
    stop: StopWhen,
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Streamed({})", self.remote.name())
    }
}

impl Streamed {
    /// The file; downloads end when `stop` says so, or when nobody wants the rows.
    pub(super) fn new(remote: Box<RemoteFile>, stop: Option<StopWhen>) -> Self {
        let stop = move || stop.as_ref().is_some_and(|stop| stop()) || check_wanted().is_err();
        Self { remote, held: Mutex::default(), stop: Arc::new(stop) }
    }

    pub(super) fn remote(&self) -> &RemoteFile {
        &self.remote
    }

    /// A reader of its own, of the file as it is here now or after its download.
    pub(super) fn open(&self) -> Result<File> {
        let mut held = loop {
            match self.held.try_lock() {
                Ok(held) => break held,
                Err(TryLockError::Poisoned(e)) => break e.into_inner(),
                // It is on its way.
                Err(TryLockError::WouldBlock) => sleep(PATIENCE),
            }
            check_wanted()?;
        };
        let file = match held.take() {
            Some(file) => file,
            None => self.remote.bring(&self.stop)?,
        };
        // It may have lost its name to another process that has read it.
        let opened = fs::open_file(Place::unguarded(path_of(&file)));
        *held = Some(file);
        opened
    }

    /// Removes the file from this machine. Its readers read on.
    pub(super) fn release(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.remote.remove();
    }

    /// The number of rows by one way of reading, `rows_of`, where it was kept by a run that read them.
    pub(super) fn kept_rows(&self, rows_of: &str) -> Option<u64> {
        fs::read_to_string(self.rows_place(rows_of)).ok()?.trim().parse().ok()
    }

    /// Keeps the number of rows for the next run, which may begin behind them.
    pub(super) fn keep_rows(&self, rows: u64, rows_of: &str) {
        let kept = fs::write_atomic(self.rows_place(rows_of), rows.to_string().as_bytes());
        if let Err(e) = kept {
            tracing::warn!("the number of rows of {} is not kept: {e}", self.remote.name());
        }
    }

    fn rows_place(&self, rows_of: &str) -> Place {
        Place::unguarded(self.remote.dir().join(format!("{}-{rows_of}.rows", self.remote.hash())))
    }

    /// The last bytes of the file, of which the rest is not fetched.
    pub(super) fn end(&self, bytes: u64) -> Result<Vec<u8>> {
        self.remote.end(bytes, &self.stop)
    }

    /// Fetches the file in a thread of its own, until the guard is dropped.
    pub(super) fn fetch_ahead(self: &Arc<Self>) -> Option<FetchAhead> {
        let (file, unwanted) = (Arc::clone(self), Arc::new(AtomicBool::new(false)));
        let flag = Arc::clone(&unwanted);
        let work = move || {
            read_until(flag);
            // Its reader tries again, and tells what is wrong.
            let _ = file.open();
        };
        let started: io::Result<_> = Builder::new().name("download".to_owned()).spawn(work);
        started.at("start a thread for", Path::new(&self.remote.name())).ok()?;
        Some(FetchAhead(unwanted))
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        if held.take().is_some() {
            self.remote.remove();
        }
    }
}

/// A download that goes on as long as this lives.
pub(super) struct FetchAhead(Arc<AtomicBool>);

impl Drop for FetchAhead {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
