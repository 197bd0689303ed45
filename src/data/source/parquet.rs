//! Parquet files, one row group after another; row groups before the first wanted row are not
//! touched.

use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder, errors::ParquetError,
    file::reader::ChunkReader,
};

use super::bytes::{FileBytes, FileLocation};
use crate::fs::File;
use crate::fs::Place;
use crate::{
    data::stage::{Batches, ROWS_PER_BATCH},
    error::{Error, Result},
};

pub(super) fn schema(file: &FileBytes) -> Result<Schema> {
    match file.place() {
        FileLocation::Path(path) => Ok(builder(open(path)?, file)?.schema().as_ref().clone()),
        FileLocation::Embedded(bytes) => {
            Ok(builder(Bytes::from_static(bytes), file)?.schema().as_ref().clone())
        }
    }
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    let rows = match file.place() {
        FileLocation::Path(path) => {
            builder(open(path)?, file)?.metadata().file_metadata().num_rows()
        }
        FileLocation::Embedded(bytes) => {
            builder(Bytes::from_static(bytes), file)?.metadata().file_metadata().num_rows()
        }
    };
    u64::try_from(rows).map_err(|_| file.error("damaged Parquet file: negative number of rows"))
}

pub(super) fn read(file: &FileBytes, from: u64) -> Result<Batches> {
    match file.place() {
        FileLocation::Path(path) => batches(builder(open(path)?, file)?, file, from),
        FileLocation::Embedded(bytes) => {
            batches(builder(Bytes::from_static(bytes), file)?, file, from)
        }
    }
}

fn open(place: &Place) -> Result<File> {
    place.open()
}

fn builder<R: ChunkReader + 'static>(
    reader: R,
    file: &FileBytes,
) -> Result<ParquetRecordBatchReaderBuilder<R>> {
    ParquetRecordBatchReaderBuilder::try_new(reader).map_err(|e| damaged(file, e))
}

fn batches<R: ChunkReader + 'static>(
    builder: ParquetRecordBatchReaderBuilder<R>,
    file: &FileBytes,
    from: u64,
) -> Result<Batches> {
    let mut skip = from;
    let mut first = 0;
    for group in builder.metadata().row_groups() {
        let rows = group.num_rows().max(0) as u64;
        if rows > skip {
            break;
        }
        skip -= rows;
        first += 1;
    }
    let groups: Vec<usize> = (first..builder.metadata().num_row_groups()).collect();
    if groups.is_empty() {
        return Ok(Box::new(std::iter::empty()));
    }
    let reader = builder
        .with_batch_size(ROWS_PER_BATCH)
        .with_row_groups(groups)
        .with_offset(skip as usize)
        .build()
        .map_err(|e| damaged(file, e))?;
    let file = file.clone();
    Ok(Box::new(reader.map(move |batch| batch.map_err(|e| damaged(&file, e.into())))))
}

fn damaged(file: &FileBytes, e: ParquetError) -> Error {
    file.error(format!("damaged or truncated Parquet file: {e}")).caused_by(e)
}
