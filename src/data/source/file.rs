//! One data file: its format, its columns, its rows from any row on.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};

use super::{
    bytes::{FileBytes, FileLocation},
    ipc, jsonl, parquet, text,
};
use crate::{
    data::stage::Batches,
    error::{Code, Error, Result},
    fs::Place,
    panics::{catch, catch_each},
};

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Parquet,
    ArrowIpc,
    JsonLines,
    Text,
}

/// The most rows of a batch.
const MOST_ROWS: usize = 1 << 16;

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

/// One file of a dataset; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DataFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: FileBytes,
    format: Format,
    rows: OnceLock<u64>,
}

impl DataFile {
    /// The file at `place`.
    pub(super) fn at(place: Place) -> Result<Self> {
        let path = place.path();
        let Some(format) = Format::of(path) else {
            bail!(
                Code::Data,
                "{}: unknown format; the extension must be one of {KNOWN_EXTENSIONS}",
                path.display()
            );
        };
        if place.len()? == 0 {
            bail!(Code::Data, "{} is empty", path.display());
        }
        let bytes = FileBytes::new(path.display().to_string(), FileLocation::Path(place.clone()));
        Ok(Self(Arc::new(Inner { bytes, format, rows: OnceLock::new() })))
    }

    /// A Parquet file inside the binary.
    pub(super) fn embedded(name: String, bytes: &'static [u8]) -> Self {
        let bytes = FileBytes::new(name, FileLocation::Embedded(bytes));
        Self(Arc::new(Inner { bytes, format: Format::Parquet, rows: OnceLock::new() }))
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> &str {
        self.0.bytes.name()
    }

    pub(super) fn schema(&self) -> Result<Schema> {
        self.guarded(|bytes| match self.0.format {
            Format::Parquet => parquet::schema(bytes),
            Format::ArrowIpc => ipc::schema(bytes),
            Format::JsonLines => jsonl::schema(bytes),
            Format::Text => Ok(text::schema()),
        })
    }

    /// Runs a reader's function, whose panic is an error of this file.
    fn guarded<T>(&self, work: impl FnOnce(&FileBytes) -> Result<T>) -> Result<T> {
        let bytes = &self.0.bytes;
        catch(|| work(bytes)).unwrap_or_else(|words| Err(self.damaged(&words)))
    }

    /// The error for a panic of a reader's library.
    fn damaged(&self, words: &str) -> Error {
        self.0.bytes.error(format!("damaged file: {words}"))
    }

    /// The number of rows; text formats are read through once for it.
    pub(super) fn num_rows(&self) -> Result<u64> {
        if let Some(&rows) = self.0.rows.get() {
            return Ok(rows);
        }
        let rows = self.guarded(|bytes| match self.0.format {
            Format::Parquet => parquet::num_rows(bytes),
            Format::ArrowIpc => ipc::num_rows(bytes),
            Format::JsonLines => jsonl::num_rows(bytes),
            Format::Text => text::num_rows(bytes),
        })?;
        Ok(*self.0.rows.get_or_init(|| rows))
    }

    /// The number of rows, where the file says it or it was counted before.
    pub(super) fn known_rows(&self) -> Result<Option<u64>> {
        match self.0.format {
            Format::Parquet => self.num_rows().map(Some),
            _ => Ok(self.0.rows.get().copied()),
        }
    }

    /// The rows from `from` on as `then` makes them of what is read. `schema` is the dataset's, which
    /// formats without types of their own read by.
    pub(super) fn read(
        &self,
        from: u64,
        schema: &SchemaRef,
        then: impl Fn(&RecordBatch) -> Result<RecordBatch> + 'static,
    ) -> Result<Batches> {
        let batches = self.guarded(|bytes| match self.0.format {
            Format::Parquet => parquet::read(bytes, from),
            Format::ArrowIpc => ipc::read(bytes, from),
            Format::JsonLines => jsonl::read(bytes, from, schema),
            Format::Text => text::read(bytes, from, schema),
        })?;
        let file = self.clone();
        let small = batches.flat_map(slices).map(move |batch| then(&batch?));
        Ok(Box::new(catch_each(small, move |batches, words| {
            file.damaged(&format!("{words} (after {batches} batches from row {from} on)"))
        })))
    }
}

/// A batch of a file in parts of which each is not too large to be worked with: a file can claim any
/// number of rows that take no space.
fn slices(batch: Result<RecordBatch>) -> Batches {
    let batch = match batch {
        Ok(batch) if batch.num_rows() > MOST_ROWS => batch,
        other => return Box::new(std::iter::once(other)),
    };
    let starts = (0..batch.num_rows()).step_by(MOST_ROWS);
    Box::new(starts.map(move |at| {
        let rows = MOST_ROWS.min(batch.num_rows() - at);
        Ok(batch.slice(at, rows))
    }))
}
