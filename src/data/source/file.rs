//! One data file: its format, its columns, its rows from any row on.

use std::{
    cell::OnceCell,
    fs::File,
    io::{BufRead, BufReader, Cursor},
    path::{Path, PathBuf},
    rc::Rc,
};

use arrow::datatypes::{Schema, SchemaRef};

use super::{ipc, jsonl, parquet, text};
use crate::{
    data::plan::Batches,
    error::{Code, Error, IoContext, Result},
};

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Parquet,
    ArrowIpc,
    JsonLines,
    Text,
}

/// The formats by their file name extensions, for messages.
pub(super) const KNOWN_EXTENSIONS: &str =
    ".parquet, .arrow, .ipc, .feather, .jsonl, .ndjson, .json, .txt";

impl Format {
    /// The format that the extension of `path` says.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_lowercase();
        match extension.as_str() {
            "parquet" => Some(Self::Parquet),
            "arrow" | "ipc" | "feather" => Some(Self::ArrowIpc),
            "jsonl" | "ndjson" | "json" => Some(Self::JsonLines),
            "txt" | "text" => Some(Self::Text),
            _ => None,
        }
    }
}

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Path(PathBuf),
    Embedded(&'static [u8]),
}

/// One file of a dataset; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DataFile(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    place: Place,
    format: Format,
    rows: OnceCell<u64>,
}

impl DataFile {
    /// The file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is empty, or has no known extension.
    pub(super) fn at(path: PathBuf) -> Result<Self> {
        let Some(format) = Format::of(&path) else {
            bail!(
                Code::Data,
                "{}: unknown format; the extension must be one of {KNOWN_EXTENSIONS}",
                path.display()
            );
        };
        if std::fs::metadata(&path).at("read", &path)?.len() == 0 {
            bail!(Code::Data, "{} is empty", path.display());
        }
        let name = path.display().to_string();
        Ok(Self(Rc::new(Inner { name, place: Place::Path(path), format, rows: OnceCell::new() })))
    }

    /// A Parquet file inside the binary.
    pub(super) fn embedded(name: String, bytes: &'static [u8]) -> Self {
        let (place, format) = (Place::Embedded(bytes), Format::Parquet);
        Self(Rc::new(Inner { name, place, format, rows: OnceCell::new() }))
    }

    /// What messages call it.
    pub(super) fn name(&self) -> &str {
        &self.0.name
    }

    /// Where its bytes are.
    pub(super) fn place(&self) -> &Place {
        &self.0.place
    }

    pub(super) fn schema(&self) -> Result<Schema> {
        match self.0.format {
            Format::Parquet => parquet::schema(self),
            Format::ArrowIpc => ipc::schema(self),
            Format::JsonLines => jsonl::schema(self),
            Format::Text => Ok(text::schema()),
        }
    }

    /// The number of rows; text formats are read through once for it.
    pub(super) fn num_rows(&self) -> Result<u64> {
        if let Some(&rows) = self.0.rows.get() {
            return Ok(rows);
        }
        let rows = match self.0.format {
            Format::Parquet => parquet::num_rows(self),
            Format::ArrowIpc => ipc::num_rows(self),
            Format::JsonLines => jsonl::num_rows(self),
            Format::Text => text::num_rows(self),
        }?;
        Ok(*self.0.rows.get_or_init(|| rows))
    }

    /// The number of rows, where the file says it or it was counted before.
    pub(super) fn known_rows(&self) -> Result<Option<u64>> {
        match self.0.format {
            Format::Parquet => self.num_rows().map(Some),
            _ => Ok(self.0.rows.get().copied()),
        }
    }

    /// The rows from `from` on. `schema` is the dataset's, which formats without types of their own
    /// read by.
    pub(super) fn read(&self, from: u64, schema: &SchemaRef) -> Result<Batches> {
        match self.0.format {
            Format::Parquet => parquet::read(self, from),
            Format::ArrowIpc => ipc::read(self, from),
            Format::JsonLines => jsonl::read(self, from, schema),
            Format::Text => text::read(self, from, schema),
        }
    }

    /// An error about this file.
    pub(super) fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::new(Code::Data, format!("{}: {reason}", self.name()))
    }

    /// Its bytes as a stream.
    pub(super) fn stream(&self) -> Result<Box<dyn BufRead>> {
        Ok(match self.place() {
            Place::Path(path) => {
                Box::new(BufReader::with_capacity(1 << 20, File::open(path).at("read", path)?))
            }
            Place::Embedded(bytes) => Box::new(Cursor::new(*bytes)),
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
    file: DataFile,
    number: u64,
}

impl Iterator for Lines {
    type Item = Result<(u64, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut line = Vec::new();
        match self.stream.read_until(b'\n', &mut line) {
            Ok(0) => None,
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
