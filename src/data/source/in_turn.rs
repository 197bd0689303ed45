//! The rows of files that follow each other.

use std::collections::VecDeque;

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use super::{columns::conform, file::DataFile, streamed::FetchAhead};
use crate::{data::stage::Batches, error::Result};

/// The batches of files, each opened when the one before has ended. Of files on the hub the next one is
/// fetched meanwhile, and one that was read is removed.
pub(super) struct FilesInTurn {
    files: VecDeque<DataFile>,
    /// The rows of the first file that are left out.
    skip: u64,
    schema: SchemaRef,
    current: Option<Current>,
    /// The download of the next file.
    ahead: Option<FetchAhead>,
}

struct Current {
    file: DataFile,
    batches: Batches,
    /// The row behind the last batch.
    row: u64,
    is_first: bool,
}

impl FilesInTurn {
    pub(super) fn new(files: VecDeque<DataFile>, skip: u64, schema: SchemaRef) -> Self {
        Self { files, skip, schema, current: None, ahead: None }
    }

    fn open(&mut self, file: DataFile) -> Result<()> {
        let (name, columns) = (file.name().to_owned(), self.schema.clone());
        let conformed = move |batch: &RecordBatch| conform(batch, &columns, &name);
        let row = std::mem::take(&mut self.skip);
        let batches = file.read(row, &self.schema, conformed);
        // It has arrived, or has failed here too.
        self.ahead = None;
        self.current = Some(Current { file, batches: batches?, row, is_first: true });
        Ok(())
    }

    fn fetch_next(&mut self) {
        if self.ahead.is_none()
            && let Some(next) = self.files.front().and_then(DataFile::as_streamed)
        {
            self.ahead = next.fetch_ahead();
        }
    }
}

impl Iterator for FilesInTurn {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(current) = &mut self.current else {
                let file = self.files.pop_front()?;
                match self.open(file) {
                    Ok(()) => continue,
                    Err(e) => return Some(Err(e)),
                }
            };
            match current.batches.next() {
                Some(Ok(batch)) => {
                    current.row += batch.num_rows() as u64;
                    // A look at the first rows fetches no further file.
                    if !std::mem::take(&mut current.is_first) {
                        self.fetch_next();
                    }
                    return Some(Ok(batch));
                }
                Some(Err(e)) => return Some(Err(e)),
                None => {
                    if let Some(Current { file, row, is_first, .. }) = self.current.take()
                        && let Some(streamed) = file.as_streamed()
                    {
                        if !is_first {
                            file.was_read(row);
                        }
                        streamed.release();
                    }
                }
            }
        }
    }
}
