//! A process of the run on this machine: a rank, or an ssh to another machine.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::Sender,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{
    Event,
    logs::{Stream, pump},
};
use crate::error::{Code, Error, Result};

/// How long the last lines of a process that has ended may take to arrive.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A process with a process group of its own, so that what it starts ends with it.
pub(super) struct Process {
    pid: Pid,
    /// How it ended, once it has.
    pub(super) ended: Option<ExitStatus>,
    pumps: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts `command`, whose lines go to `line` and whose end is sent to `events`.
    pub(super) fn start(
        mut command: Command,
        events: &Sender<Event>,
        line: impl Fn(Stream, &[u8]) + Clone + Send + 'static,
        ended: impl FnOnce(ExitStatus) -> Event + Send + 'static,
    ) -> Result<Self> {
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|e| {
            let program = command.get_program().to_string_lossy();
            Error::new(Code::Io, format!("cannot start {program}: {e}"))
        })?;
        let mut pumps = Vec::new();
        if let Some(out) = child.stdout.take() {
            let line = line.clone();
            pumps.push(thread::spawn(move || pump(out, |bytes| line(Stream::Out, bytes))));
        }
        if let Some(err) = child.stderr.take() {
            pumps.push(thread::spawn(move || pump(err, |bytes| line(Stream::Err, bytes))));
        }
        let pid = Pid::from_child(&child);
        let events = events.clone();
        thread::spawn(move || {
            if let Ok(status) = child.wait() {
                // Nobody listens any more when the launcher ends.
                let _ = events.send(ended(status));
            }
        });
        Ok(Self { pid, ended: None, pumps })
    }

    /// Whether it still runs, as far as is known.
    pub(super) fn runs(&self) -> bool {
        self.ended.is_none()
    }

    /// Sends a signal to the process and what it has started, if it still runs.
    pub(super) fn signal(&self, signal: Signal) {
        if self.runs() {
            // It may have ended just now.
            let _ = kill_process_group(self.pid, signal);
        }
    }

    /// Waits until the lines of a process that has ended are written, within reason: what it
    /// started may still hold its pipes.
    pub(super) fn drain(&self) {
        let end = Instant::now() + LAST_LINES;
        while !self.is_silent() && Instant::now() < end {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether its pipes are closed: it has ended, with all that it started.
    pub(super) fn is_silent(&self) -> bool {
        self.pumps.iter().all(JoinHandle::is_finished)
    }
}
