//! The audit log: a line of JSON for each access that a recipe asked for.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::json;

use super::access::Access;
use crate::{
    error::{IoContext, Result},
    fs::{File, append_to_named},
};

/// An open log. Lines are added behind those that it has.
#[derive(Debug)]
pub struct Audit {
    path: PathBuf,
    file: File,
}

impl Audit {
    /// The log in the file at `path`, which is made where there is none. In `work_dir` it is opened through
    /// no link.
    pub fn open(path: &Path, work_dir: &Path) -> Result<Self> {
        let file = append_to_named(path, work_dir)?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn write(&self, access: Access<'_>, allowed: bool, at: &str) -> Result<()> {
        let line = json!({
            "time": seconds(),
            "capability": access.capability().name(),
            "what": access.what(),
            "allowed": allowed,
            "place": at,
        });
        // In one piece, so that the lines of several ranks do not mix.
        (&self.file).write_all(format!("{line}\n").as_bytes()).at("write the audit log", &self.path)
    }
}

/// Seconds since 1970.
pub(super) fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_millis() as f64 / 1e3)
}
