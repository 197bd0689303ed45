//! Parquet files, one row group after another; row groups before the first wanted row are not
//! touched.

use std::io::{Cursor, Read, Seek};

use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder, errors::ParquetError,
    file::reader::ChunkReader,
};

use super::{
    bytes::{FileBytes, FileLocation},
    parquet_check::{check_groups, check_metadata},
};
use crate::{
    data::stage::{Batches, ROWS_PER_BATCH},
    error::{Error, IoContext, Result},
    fs::open_file,
};

/// Runs an expression on the reader of a file, wherever its bytes are.
macro_rules! with_builder {
    ($file:expr, |$builder:ident| $work:expr) => {
        match $file.place() {
            FileLocation::Path(path) => {
                let opened = open_file(path)?;
                let looked = opened.try_clone().at("read", path.path())?;
                let $builder = builder(opened, looked, $file)?;
                $work
            }
            FileLocation::Embedded(bytes) => {
                let $builder = builder(Bytes::from_static(bytes), Cursor::new(*bytes), $file)?;
                $work
            }
        }
    };
}

pub(super) fn schema(file: &FileBytes) -> Result<Schema> {
    with_builder!(file, |builder| Ok(builder.schema().as_ref().clone()))
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    let rows = with_builder!(file, |builder| {
        Ok::<_, Error>(builder.metadata().file_metadata().num_rows())
    })?;
    u64::try_from(rows).map_err(|_| file.error("damaged Parquet file: negative number of rows"))
}

pub(super) fn read(file: &FileBytes, from: u64) -> Result<Batches> {
    with_builder!(file, |builder| batches(builder, file, from))
}

/// The reader of a file whose sizes were checked.
fn builder<R: ChunkReader + 'static>(
    source: R,
    mut bytes: impl Read + Seek,
    file: &FileBytes,
) -> Result<ParquetRecordBatchReaderBuilder<R>> {
    let wrong = |e: String| file.error(format!("damaged or truncated Parquet file: {e}"));
    let len = source.len();
    check_metadata(&mut bytes, len).map_err(wrong)?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(source).map_err(|e| damaged(file, e))?;
    check_groups(builder.metadata(), len).map_err(wrong)?;
    Ok(builder)
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
