//! A copy of rows in an unnamed temporary file, readable in any order in bounded memory.
//!
//! The file is Arrow IPC with one row to a record batch, so that its footer is an index of rows and
//! reading one row is a seek. It is written at the first use and lives as long as the datasets that
//! use it; having no name, it never outlasts the process.

use std::{
    io::{self, BufReader, BufWriter},
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use arrow::{
    array::RecordBatch,
    compute::concat_batches,
    datatypes::SchemaRef,
    error::ArrowError,
    ipc::{reader::FileReader, writer::FileWriter},
};

use super::stage::{Batches, Stage};
use crate::{
    error::{Code, Error, IoContext, Result},
    fs::File,
};

/// How many rows are joined into one batch when reading.
const ROWS_PER_BATCH: usize = 256;

/// Its input's rows of epoch 0, kept on disk once they were read.
pub(super) struct Spool {
    input: Arc<dyn Stage>,
    file: OnceLock<Arc<SpoolFile>>,
    /// Held by the thread that writes the file.
    writing: Mutex<()>,
}

impl Spool {
    pub(super) fn new(input: Arc<dyn Stage>) -> Self {
        Self { input, file: OnceLock::new(), writing: Mutex::new(()) }
    }

    /// The file, written now if it was not yet.
    pub(super) fn file(&self) -> Result<Arc<SpoolFile>> {
        if let Some(file) = self.file.get() {
            return Ok(file.clone());
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = self.file.get() {
            return Ok(file.clone());
        }
        let file = Arc::new(SpoolFile::write(&self.input.schema(), self.input.read(0, 0)?)?);
        Ok(self.file.get_or_init(|| file).clone())
    }

    pub(super) fn input(&self) -> &Arc<dyn Stage> {
        &self.input
    }
}

impl Stage for Spool {
    fn inputs(&self) -> Vec<&dyn Stage> {
        vec![&*self.input]
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        match self.file.get() {
            Some(file) => Ok(Some(file.len())),
            None => self.input.num_rows(),
        }
    }

    fn count(&self) -> Result<u64> {
        match self.num_rows()? {
            Some(rows) => Ok(rows),
            None => Ok(self.file()?.len()),
        }
    }

    fn row_tokens(&self) -> Option<usize> {
        self.input.row_tokens()
    }

    fn is_spooled(&self) -> bool {
        true
    }

    fn read(&self, _epoch: u64, from: u64) -> Result<Batches> {
        let file = self.file()?;
        let order = from..file.len();
        Ok(SpoolFile::read(&file, order))
    }

    fn identity(&self) -> Result<Option<String>> {
        self.input.identity()
    }

    fn describe(&self) -> String {
        format!("{} -> cache()", self.input.describe())
    }
}

/// The written file and its index.
pub(super) struct SpoolFile {
    reader: Mutex<FileReader<BufReader<File>>>,
    rows: u64,
}

impl SpoolFile {
    fn write(schema: &SchemaRef, batches: Batches) -> Result<Self> {
        let dir = std::env::temp_dir();
        let file = tempfile::tempfile_in(&dir).at("create a temporary file in", &dir)?;
        let failed = |e| spool_error(e, &dir);
        let mut writer = FileWriter::try_new(BufWriter::new(&file), schema).map_err(failed)?;
        let mut rows = 0;
        for batch in batches {
            let batch = batch?;
            for row in 0..batch.num_rows() {
                writer.write(&batch.slice(row, 1)).map_err(failed)?;
            }
            rows += batch.num_rows() as u64;
        }
        writer.finish().and_then(|()| writer.flush()).map_err(failed)?;
        drop(writer);
        let reader = FileReader::try_new(BufReader::new(file), None).map_err(failed)?;
        Ok(Self { reader: Mutex::new(reader), rows })
    }

    /// The number of rows.
    pub(super) fn len(&self) -> u64 {
        self.rows
    }

    /// The rows named by `order`.
    pub(super) fn read(file: &Arc<Self>, order: impl Iterator<Item = u64> + 'static) -> Batches {
        let file = file.clone();
        let mut order = order;
        Box::new(std::iter::from_fn(move || {
            let rows: Vec<u64> = order.by_ref().take(ROWS_PER_BATCH).collect();
            (!rows.is_empty()).then(|| file.gather(&rows))
        }))
    }

    fn gather(&self, rows: &[u64]) -> Result<RecordBatch> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |row: &u64| {
            reader.set_index(*row as usize)?;
            reader.next().unwrap_or_else(|| {
                Err(ArrowError::IpcError(format!("row {row} is not in the temporary file")))
            })
        };
        let rows = rows.iter().map(read).collect::<Result<Vec<_>, _>>();
        rows.and_then(|rows| concat_batches(&rows[0].schema(), &rows))
            .map_err(|e| spool_error(e, &std::env::temp_dir()))
    }
}

fn spool_error(e: ArrowError, dir: &Path) -> Error {
    match e {
        ArrowError::IoError(_, io) => {
            let written: io::Result<()> = Err(io);
            match written.at("keep rows in a temporary file in", dir) {
                Err(e) => e.hint("the environment variable TMPDIR chooses another directory"),
                Ok(()) => Error::new(Code::Io, "a temporary file failed without a reason"),
            }
        }
        other => Error::new(Code::Data, format!("cannot keep these rows on disk: {other}"))
            .caused_by(other),
    }
}
