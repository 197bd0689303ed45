//! One data file: its format, its columns, its rows from any row on.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
};

use super::{
    bytes::{Compression, FileBytes, FileLocation},
    csv, ipc, jsonl, parquet,
    slices::in_parts,
    streamed::Streamed,
    text::{self, SampleBy},
};
use crate::{
    data::stage::Batches,
    error::{Code, Error, IoContext, Result, StopWhen},
    fs::{Place, open_file, read_start, refuse_pointer},
    hub::RemoteFile,
    panics::{catch, catch_each},
};

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Parquet,
    ArrowIpc,
    /// JSON Lines, or an array of objects.
    JsonLines,
    /// Rows between line ends, values between such characters.
    Csv(u8),
    Text,
}

/// The bytes of a file that are looked at before it is opened.
const START: usize = 64;

/// The formats by their file name extensions, for messages.
pub(super) const KNOWN_EXTENSIONS: &str = ".parquet, .arrow, .ipc, .feather, .jsonl, .ndjson, .json, .csv, .tsv, .txt, .md (all but the \
     first four also with .gz or .zst behind)";

/// Endings of archives and tables that hold data which dsr does not read.
const FOREIGN: [&str; 12] =
    ["bz2", "xz", "lz4", "br", "zip", "7z", "rar", "tar", "tgz", "xlsx", "pkl", "avro"];

impl Format {
    /// The format that the extension of `path` says.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let (packed, path) = Compression::of(path);
        let extension = path.extension()?.to_str()?.to_lowercase();
        match extension.as_str() {
            "parquet" | "arrow" | "ipc" | "feather" if packed != Compression::None => None,
            "parquet" => Some(Self::Parquet),
            "arrow" | "ipc" | "feather" => Some(Self::ArrowIpc),
            "jsonl" | "ndjson" | "json" => Some(Self::JsonLines),
            "csv" => Some(Self::Csv(b',')),
            "tsv" => Some(Self::Csv(b'\t')),
            "txt" | "text" | "md" | "markdown" => Some(Self::Text),
            _ => None,
        }
    }

    /// Whether `path` is data by its name that dsr does not read, and must not pass over.
    pub(super) fn is_foreign(path: &Path) -> bool {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
        let is_packed = Compression::of(path).0 != Compression::None;
        Self::of(path).is_none() && (is_packed || FOREIGN.contains(&extension.as_str()))
    }
}

/// One file of a dataset; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DataFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: FileBytes,
    format: Format,
    sample_by: SampleBy,
    rows: OnceLock<u64>,
}

impl DataFile {
    /// The file at `place`.
    pub(super) fn at(place: Place, sample_by: SampleBy) -> Result<Self> {
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
        let start = read_start(&mut open_file(&place)?, START).at("read", path)?;
        refuse_pointer(path, &start, Code::Data)?;
        let (packed, _) = Compression::of(path);
        let name = path.display().to_string();
        let bytes = FileBytes::new(name, FileLocation::Path(place.clone()), packed);
        Ok(Self(Arc::new(Inner { bytes, format, sample_by, rows: OnceLock::new() })))
    }

    /// A file of the hub that is fetched when it is read.
    pub(super) fn streamed(
        remote: Box<RemoteFile>,
        sample_by: SampleBy,
        stop: Option<StopWhen>,
    ) -> Result<Self> {
        let name = remote.name();
        let Some(format) = Format::of(Path::new(&name)) else {
            bail!(
                Code::Data,
                "{name}: unknown format; the extension must be one of {KNOWN_EXTENSIONS}"
            );
        };
        let (packed, _) = Compression::of(Path::new(&name));
        let place = FileLocation::Streamed(Arc::new(Streamed::new(remote, stop)));
        let bytes = FileBytes::new(name, place, packed);
        Ok(Self(Arc::new(Inner { bytes, format, sample_by, rows: OnceLock::new() })))
    }

    /// A Parquet file inside the binary.
    pub(super) fn embedded(name: String, bytes: &'static [u8]) -> Self {
        let bytes = FileBytes::new(name, FileLocation::Embedded(bytes), Compression::None);
        let (format, sample_by) = (Format::Parquet, SampleBy::Document);
        Self(Arc::new(Inner { bytes, format, sample_by, rows: OnceLock::new() }))
    }

    /// Its name in messages.
    pub(super) fn name(&self) -> &str {
        self.0.bytes.name()
    }

    /// The file as one that is here only while it is read, if it is.
    pub(super) fn as_streamed(&self) -> Option<&Arc<Streamed>> {
        match self.0.bytes.place() {
            FileLocation::Streamed(streamed) => Some(streamed),
            _ => None,
        }
    }

    /// Whether a row may lack a column that another file has.
    pub(super) fn may_lack_columns(&self) -> bool {
        self.0.format == Format::JsonLines
    }

    /// What tells the file's content from another's.
    pub(super) fn fingerprint(&self) -> Result<String> {
        self.0.bytes.fingerprint()
    }

    /// A text that no other file has, nor this one once it was written again.
    pub(super) fn identity(&self) -> Result<String> {
        let Inner { bytes, format, sample_by, .. } = &*self.0;
        Ok(format!("{} {format:?} {sample_by:?}", bytes.identity()?))
    }

    pub(super) fn schema(&self) -> Result<Schema> {
        let schema = self.guarded(|bytes| match self.0.format {
            Format::Parquet => parquet::schema(bytes),
            Format::ArrowIpc => ipc::schema(bytes),
            Format::JsonLines => jsonl::schema(bytes),
            Format::Csv(delimiter) => csv::schema(bytes, delimiter),
            Format::Text => Ok(text::schema()),
        })?;
        if !is_flat_enough(schema.fields(), MOST_LEVELS) {
            let what = format!("its columns are nested in more than {MOST_LEVELS} levels");
            return Err(self.0.bytes.error(what));
        }
        // Those within a column are columns as well, with a place for each row.
        self.0.bytes.check_columns(schema.flattened_fields().len())?;
        Ok(schema)
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
        if let Some(rows) = self.told_rows()? {
            return Ok(*self.0.rows.get_or_init(|| rows));
        }
        let rows = self.guarded(|bytes| match self.0.format {
            Format::Parquet => parquet::num_rows(bytes),
            Format::ArrowIpc => ipc::num_rows(bytes),
            Format::JsonLines => jsonl::num_rows(bytes),
            Format::Csv(delimiter) => csv::num_rows(bytes, delimiter),
            Format::Text => text::num_rows(bytes, self.0.sample_by),
        })?;
        Ok(*self.0.rows.get_or_init(|| rows))
    }

    /// The number of rows of a file on the hub, where it can be had without the file.
    fn told_rows(&self) -> Result<Option<u64>> {
        let Some(streamed) = self.as_streamed() else { return Ok(None) };
        let size = streamed.remote().size();
        match (streamed.kept_rows(&self.rows_of()), self.0.format) {
            (Some(rows), _) => Ok(Some(rows)),
            (None, Format::Parquet) => {
                parquet::rows_by_end(self.name(), size, |bytes| streamed.end(bytes)).map(Some)
            }
            (None, _) => Ok(None),
        }
    }

    /// The name of the way in which the file is cut into rows.
    fn rows_of(&self) -> String {
        format!("{:?}", self.0.sample_by).to_lowercase()
    }

    /// Remembers the number of rows, which all were read.
    pub(super) fn was_read(&self, rows: u64) {
        if let Some(streamed) = self.as_streamed()
            && self.0.rows.set(rows).is_ok()
        {
            streamed.keep_rows(rows, &self.rows_of());
        }
    }

    /// The number of rows, where the file says it or it was counted before.
    pub(super) fn known_rows(&self) -> Result<Option<u64>> {
        match self.0.format {
            Format::Parquet if self.as_streamed().is_none() => self.num_rows().map(Some),
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
            Format::Csv(delimiter) => csv::read(bytes, from, schema, delimiter),
            Format::Text => text::read(bytes, from, schema, self.0.sample_by),
        })?;
        let file = self.clone();
        let small = in_parts(batches, &self.0.bytes).map(move |batch| then(&batch?));
        Ok(Box::new(catch_each(small, move |batches, words| {
            file.damaged(&format!("{words} (after {batches} batches from row {from} on)"))
        })))
    }
}

/// Columns within each other: as many as JSON has.
const MOST_LEVELS: usize = 128;

/// Whether columns go at most `levels` deep. Readers go through them by recursion, and again for each
/// level.
fn is_flat_enough(fields: &Fields, levels: usize) -> bool {
    let Some(left) = levels.checked_sub(1) else { return fields.is_empty() };
    let within = |field: &FieldRef| match field.data_type() {
        DataType::Struct(fields) => is_flat_enough(fields, left),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _)
        | DataType::Map(item, _)
        | DataType::RunEndEncoded(_, item) => is_flat_enough(&vec![item.clone()].into(), left),
        DataType::Union(fields, _) => {
            let fields: Vec<_> = fields.iter().map(|(_, field)| field.clone()).collect();
            is_flat_enough(&fields.into(), left)
        }
        _ => true,
    };
    fields.iter().all(within)
}
