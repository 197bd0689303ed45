//! A log of steps: one JSON object a line, with its `step`, for any program to read while the run goes on.
//!
//! Each line reaches the system with one write, so that a killed process leaves at most one torn line, the
//! last; lines are not flushed to the disk one by one.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;

use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{self, File, Place, append_whole, write_atomic},
};

/// An open log of steps.
#[derive(Debug)]
pub struct StepLog {
    path: PathBuf,
    file: File,
}

impl StepLog {
    /// Opens the log at `place` to append to; it is made when absent.
    pub fn open(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        Ok(Self { path: place.path().to_owned(), file: place.append()? })
    }

    /// Opens the log of a run that goes on after `step`, without the steps that are gone (`forget_after`).
    pub fn resume(place: impl Into<Place>, step: u64) -> Result<Self> {
        let place = place.into();
        forget_after(&place, step)?;
        Self::open(place)
    }

    /// Appends a line.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|e| {
            Error::new(Code::Internal, "a step cannot be written as JSON").caused_by(e)
        })?;
        line.push('\n');
        append_whole(&mut self.file, line.as_bytes()).at("write", &self.path)
    }
}

/// Drops the lines of steps after `step`, which will be done again, and a torn last line. A log that is not
/// there is fine.
pub(super) fn forget_after(place: &Place, step: u64) -> Result<()> {
    if !place.exists() {
        return Ok(());
    }
    write_atomic(place, until(place, step)?.as_bytes())
}

/// Writes the lines of the log `from` up to `step` into the log `to`. A log that is not there is fine.
pub(super) fn copy_until(from: &Place, to: &Place, step: u64) -> Result<()> {
    if !from.is_file() {
        return Ok(());
    }
    write_atomic(to, until(from, step)?.as_bytes())
}

/// The lines of a log up to `step`, without a torn last one.
fn until(place: &Place, step: u64) -> Result<String> {
    let mut kept = String::new();
    for (line, value) in &lines(place)? {
        if step_of(value).is_none_or(|s| s <= step) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

/// The lines with their values, without a torn last one.
pub(super) fn lines(path: &Place) -> Result<Vec<(String, Value)>> {
    // A crash may leave bytes at the end that are no text.
    let bytes = fs::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut found = Vec::new();
    let count = text.lines().count();
    for (i, line) in text.lines().enumerate() {
        match serde_json::from_str::<Value>(line) {
            Ok(value) if value.is_object() => found.push((line.to_owned(), value)),
            _ if i + 1 == count && !text.ends_with('\n') => {}
            _ => {
                return Err(Error::new(
                    Code::Io,
                    format!("{} line {} is not a JSON object", path.display(), i + 1),
                )
                .hint("move the file away to go on without its earlier lines"));
            }
        }
    }
    Ok(found)
}

/// The step of a line.
pub(super) fn step_of(value: &Value) -> Option<u64> {
    value.get("step").and_then(Value::as_u64)
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    /// A directory, and the place of a log in it.
    pub(in crate::run) fn log() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        (dir, path)
    }

    #[test]
    fn resuming_drops_the_steps_that_will_be_done_again() {
        let (_dir, path) = log();
        let mut log = StepLog::resume(&path, 0).unwrap();
        for step in 1..=4 {
            log.append(&json!({ "step": step })).unwrap();
        }
        let mut log = StepLog::resume(&path, 2).unwrap();
        log.append(&json!({ "step": 3, "loss": 0.5 })).unwrap();
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "{\"step\":1}\n{\"step\":2}\n{\"step\":3,\"loss\":0.5}\n"
        );
    }

    #[test]
    fn a_torn_last_line_is_dropped_and_any_other_is_an_error() {
        let (_dir, path) = log();
        fs::write(&path, "{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"lo").unwrap();
        StepLog::resume(&path, 9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1,\"loss\":2.0}\n");
        fs::write(&path, "{\"step\":1}\n[]\n").unwrap();
        let e = StepLog::resume(&path, 9).unwrap_err();
        assert!(e.message().contains("line 2 is not a JSON object"), "{e}");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut log = StepLog::open("/dev/full").unwrap();
        assert_eq!(log.append(&json!({ "step": 1 })).unwrap_err().code(), Code::DiskFull);
    }
}
