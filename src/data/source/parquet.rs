//! Parquet files, one row group after another; row groups before the first wanted row are not
//! touched.

use std::{
    io::{Cursor, Read, Seek},
    path::Path,
};

use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::{
    arrow::arrow_reader::ParquetRecordBatchReaderBuilder,
    errors::ParquetError,
    file::{metadata::ParquetMetaDataReader, reader::ChunkReader},
};

use super::{
    bytes::{FileBytes, Opened},
    parquet_check::{check_groups, check_metadata},
    parquet_pages::CheckedPages,
};
use crate::{
    data::stage::{Batches, ROWS_PER_BATCH},
    error::{Code, Error, IoContext, Result},
};

/// Runs an expression on the reader of a file, wherever its bytes are.
macro_rules! with_builder {
    ($file:expr, |$builder:ident| $work:expr) => {
        match $file.open()? {
            Opened::File(opened) => {
                let looked = opened.try_clone().at("read", Path::new($file.name()))?;
                let $builder = builder(opened, looked, $file)?;
                $work
            }
            Opened::Embedded(bytes) => {
                let $builder = builder(Bytes::from_static(bytes), Cursor::new(bytes), $file)?;
                $work
            }
        }
    };
}

/// The bytes at the end of a file that are asked for first.
const END: u64 = 64 << 10;

/// The number of rows of a file of `size` bytes, of which `end` gives the last ones.
pub(super) fn rows_by_end(
    name: &str,
    size: u64,
    end: impl Fn(u64) -> Result<Vec<u8>>,
) -> Result<u64> {
    let wrong = |e: String| Error::new(Code::Data, format!("{name}: damaged Parquet file: {e}"));
    let mut bytes = END;
    loop {
        match rows_of_end(&Bytes::from(end(bytes)?), size).map_err(wrong)? {
            End::Rows(rows) => return Ok(rows),
            End::Needs(more) => bytes = more,
        }
    }
}

/// The answer of a file's last bytes.
enum End {
    /// The number of rows.
    Rows(u64),
    /// As many bytes are needed.
    Needs(u64),
}

/// Reads the number of rows from the last bytes of a file of `size` bytes.
fn rows_of_end(end: &Bytes, size: u64) -> std::result::Result<End, String> {
    let Some([a, b, c, d, b'P', b'A', b'R', b'1']) = end.last_chunk::<8>() else {
        return Err("it does not end as such files do".to_owned());
    };
    let needed = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) + 8;
    if needed > size {
        return Err(format!("its metadata of {needed} bytes are longer than the file"));
    }
    if needed > end.len() as u64 {
        return Ok(End::Needs(needed));
    }
    check_metadata(&mut Cursor::new(end), end.len() as u64)?;
    let metadata = ParquetMetaDataReader::new().parse_and_finish(end).map_err(|e| e.to_string())?;
    let rows = metadata.file_metadata().num_rows();
    u64::try_from(rows).map(End::Rows).map_err(|_| "negative number of rows".to_owned())
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

/// The reader of a file whose sizes were checked. Those of a column's pages are before they are read.
fn builder<R: ChunkReader + 'static>(
    source: R,
    mut bytes: impl Read + Seek,
    file: &FileBytes,
) -> Result<ParquetRecordBatchReaderBuilder<CheckedPages<R>>> {
    let wrong = |e: String| file.error(format!("damaged or truncated Parquet file: {e}"));
    let len = source.len();
    check_metadata(&mut bytes, len).map_err(wrong)?;
    let source = CheckedPages::new(source);
    let unchecked = source.unchecked();
    let builder = ParquetRecordBatchReaderBuilder::try_new(source).map_err(|e| damaged(file, e))?;
    check_groups(builder.metadata(), len).map_err(wrong)?;
    unchecked.add(builder.metadata());
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
