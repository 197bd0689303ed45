//! The output of the ranks, line by line: into a file each, and rank 0's onto the screen.
//!
//! Which directory the run gets is decided by the run itself, after its ranks have begun to write.
//! The logs therefore begin in `runs/<name>-launch` and are moved when the directory is known;
//! where a recipe starts no run they stay there. A run that goes on in its directory goes on in
//! its logs.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    error::{IoContext, Result},
    fs::{File, Place, remove_dir},
};

/// Where a launcher shows what its user is to see. Called from several threads.
pub trait Screen: Send + Sync {
    /// Writes to standard output.
    fn out(&self, bytes: &[u8]);
    /// Writes to standard error.
    fn err(&self, bytes: &[u8]);
}

/// One of the two streams of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// The directory of the logs of one launcher.
pub(super) struct Logs {
    inner: Mutex<Inner>,
}

struct Inner {
    dir: Place,
    /// Whether the directory is that of the run.
    settled: bool,
    files: Vec<(String, File)>,
}

/// The log of one process.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogId(usize);

impl Logs {
    /// Logs that begin in a new directory in `root`.
    pub(super) fn create(root: impl Into<Place>, name: &str) -> Result<Self> {
        let root = root.into();
        root.create_dir_all()?;
        for number in 1.. {
            let dir = match number {
                1 => root.join(format!("{name}-launch")),
                _ => root.join(format!("{name}-launch-{number}")),
            };
            if !dir.create_dir()? {
                continue;
            }
            let inner = Inner { dir, settled: false, files: Vec::new() };
            return Ok(Self { inner: Mutex::new(inner) });
        }
        unreachable!("some number up to 2^64 is free")
    }

    /// Opens the log `name`, such as `rank-0.log`.
    pub(super) fn open(&self, name: String) -> Result<LogId> {
        let mut inner = self.lock();
        let file = inner.dir.join(&name).append()?;
        inner.files.push((name, file));
        Ok(LogId(inner.files.len() - 1))
    }

    /// Where the logs are.
    pub(super) fn dir(&self) -> PathBuf {
        self.lock().dir.path().to_owned()
    }

    /// Removes the directory of a launch that has come to nothing, unless something is in it.
    pub(super) fn discard(&self) {
        // A log that is not empty stays.
        let _ = self.lock().dir.remove_empty_dir();
    }

    /// Removes the logs, and the directory of runs where nothing else is in it.
    pub(super) fn remove(&self) {
        let dir = &self.lock().dir;
        // A file that cannot be removed is in nobody's way.
        let _ = remove_dir(dir);
        let _ = dir.parent().map(|root| root.remove_empty_dir());
    }

    /// Moves the logs into the run's directory, behind what is there already. Once is enough.
    pub(super) fn settle(&self, dir: &Path) -> Result<()> {
        let mut inner = self.lock();
        if inner.settled {
            return Ok(());
        }
        // On another machine than rank 0's the directory may not be there.
        let dir = inner.dir.beside(dir);
        dir.create_dir_all()?;
        let Inner { dir: old, files, .. } = &mut *inner;
        for (name, file) in files {
            let (from, to) = (old.join(&*name), dir.join(&*name));
            let mut moved = to.append()?;
            io::copy(&mut from.open()?, &mut moved).at("write", to.path())?;
            *file = moved;
            from.remove_file()?;
        }
        old.remove_empty_dir()?;
        *old = dir;
        inner.settled = true;
        Ok(())
    }

    /// Appends a line, in front of which stands `prefix`. A log that cannot be written does not
    /// stop the run.
    pub(super) fn line(&self, id: LogId, prefix: &str, line: &[u8]) {
        let mut whole = prefix.as_bytes().to_vec();
        whole.extend_from_slice(line);
        if !line.ends_with(b"\n") {
            whole.push(b'\n');
        }
        if let Err(e) = self.lock().files[id.0].1.write_all(&whole) {
            tracing::warn!("a log cannot be written: {e}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives each line that comes from `pipe` to `take`, until the pipe is closed.
pub(super) fn pump(pipe: impl Read, mut take: impl FnMut(&[u8])) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    // A pipe that fails is one that is closed.
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        take(&line);
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn logs_move_into_the_runs_directory_behind_what_is_there() {
        let root = tempfile::tempdir().unwrap();
        let logs = Logs::create(root.path(), "a").unwrap();
        let id = logs.open("rank-0.log".into()).unwrap();
        logs.line(id, "[rank 0] ", b"one\n");
        let run = root.path().join("a");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("rank-0.log"), "[rank 0] zero\n").unwrap();
        assert_eq!(logs.dir(), root.path().join("a-launch"));
        logs.settle(&run).unwrap();
        logs.settle(&root.path().join("other")).unwrap();
        logs.line(id, "[rank 0] ", b"two");
        let text = fs::read_to_string(run.join("rank-0.log")).unwrap();
        assert_eq!(text, "[rank 0] zero\n[rank 0] one\n[rank 0] two\n");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn two_launches_have_two_directories() {
        let root = tempfile::tempdir().unwrap();
        let [first, second] = [(); 2].map(|()| Logs::create(root.path(), "a").unwrap().dir());
        assert_eq!(first, root.path().join("a-launch"));
        assert_eq!(second, root.path().join("a-launch-2"));
    }

    #[test]
    fn a_pump_gives_lines_and_the_rest() {
        let mut lines = Vec::new();
        pump(&b"one\n\ntwo"[..], |line| lines.push(line.to_vec()));
        assert_eq!(lines, [b"one\n".as_slice(), b"\n", b"two"]);
    }
}
