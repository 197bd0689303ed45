//! The bytes of one data file, on disk or in the binary, as a stream or as lines.

use std::{
    io::{BufRead, BufReader, Cursor, Read},
    path::Path,
    sync::Arc,
};

use crate::{
    data::wanted::check_wanted,
    error::{Code, Error, IoContext, Result},
    fs::{Place, open_file},
    units::Bytes,
};

/// The longest line.
const MOST_LINE_BYTES: u64 = 256 << 20;

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum FileLocation {
    Path(Place),
    Embedded(&'static [u8]),
}

/// A file's bytes and what messages call it; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct FileBytes(Arc<(String, FileLocation)>);

impl FileBytes {
    pub(super) fn new(name: String, place: FileLocation) -> Self {
        Self(Arc::new((name, place)))
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> &str {
        &self.0.0
    }

    /// Where its bytes are.
    pub(super) fn place(&self) -> &FileLocation {
        &self.0.1
    }

    /// An error about this file.
    pub(super) fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::new(Code::Data, format!("{}: {reason}", self.name()))
    }

    /// Its bytes as a stream.
    pub(super) fn stream(&self) -> Result<Box<dyn BufRead>> {
        Ok(match self.place() {
            FileLocation::Path(place) => {
                Box::new(BufReader::with_capacity(1 << 20, open_file(place)?))
            }
            FileLocation::Embedded(bytes) => Box::new(Cursor::new(*bytes)),
        })
    }

    /// Its lines with their numbers, from 1; line ends are cut off.
    pub(super) fn lines(&self) -> Result<Lines> {
        Ok(Lines { stream: self.stream()?, file: self.clone(), number: 0 })
    }
}

/// The lines of a file as bytes.
pub(super) struct Lines {
    stream: Box<dyn BufRead>,
    file: FileBytes,
    number: u64,
}

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(e) = check_wanted() {
            return Some(Err(e));
        }
        let mut line = Vec::new();
        match self.stream.by_ref().take(MOST_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(n) if n as u64 == MOST_LINE_BYTES => {
                let (number, most) = (self.number + 1, Bytes(MOST_LINE_BYTES));
                Some(Err(self.file.error(format!("line {number} is longer than {most}"))))
            }
            Ok(_) => {
                if line.ends_with(b"\n") {
                    line.pop();
                }
                if line.ends_with(b"\r") {
                    line.pop();
                }
                self.number += 1;
                Some(Ok((self.number, line)))
            }
            Err(e) => Some(Err(e).at("read", Path::new(self.file.name()))),
        }
    }
}
