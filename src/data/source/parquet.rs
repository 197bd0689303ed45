//! Parquet files, one row group after another; row groups before the first wanted row are not
//! touched.

use std::{
    io::{Cursor, Read, Seek},
    path::Path,
    sync::Arc,
};

use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader, RowSelection, RowSelector},
        parquet_to_arrow_field_levels,
    },
    errors::ParquetError,
    file::{metadata::ParquetMetaDataReader, reader::ChunkReader},
};

use super::{
    bytes::{FileBytes, Opened},
    parquet_check::{check_groups, check_metadata},
    parquet_columns::Groups,
    parquet_pages::CheckedPages,
    parquet_repeats::Made,
};
use crate::{
    data::stage::{Batches, ROWS_PER_BATCH},
    error::{Code, Error, IoContext, Result},
};

/// Runs an expression on a file with its metadata, wherever its bytes are.
macro_rules! with_metadata {
    ($file:expr, |$source:ident, $metadata:ident| $work:expr) => {
        match $file.open()? {
            Opened::File(opened) => {
                let looked = opened.try_clone().at("read", Path::new($file.name()))?;
                let ($source, $metadata) = checked(opened, looked, $file)?;
                $work
            }
            Opened::Embedded(bytes) => {
                let bytes = (Bytes::from_static(bytes), Cursor::new(bytes));
                let ($source, $metadata) = checked(bytes.0, bytes.1, $file)?;
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
    with_metadata!(file, |_source, metadata| Ok(metadata.schema().as_ref().clone()))
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    let rows = with_metadata!(file, |_source, metadata| {
        Ok::<_, Error>(metadata.metadata().file_metadata().num_rows())
    })?;
    u64::try_from(rows).map_err(|_| file.error("damaged Parquet file: negative number of rows"))
}

pub(super) fn read(file: &FileBytes, from: u64) -> Result<Batches> {
    with_metadata!(file, |source, metadata| batches(source, &metadata, file, from))
}

/// A file with its metadata, whose sizes were checked. Those of a column's pages are before they are
/// read.
fn checked<R: ChunkReader + 'static>(
    source: R,
    mut bytes: impl Read + Seek,
    file: &FileBytes,
) -> Result<(CheckedPages<R>, ArrowReaderMetadata)> {
    let wrong = |e: String| file.error(format!("damaged or truncated Parquet file: {e}"));
    let len = source.len();
    check_metadata(&mut bytes, len).map_err(wrong)?;
    let source = CheckedPages::new(source);
    let metadata = ArrowReaderMetadata::load(&source, Default::default());
    let metadata = metadata.map_err(|e| damaged(file, e))?;
    check_groups(metadata.metadata(), len).map_err(wrong)?;
    source.unchecked().add(metadata.metadata());
    Ok((source, metadata))
}

fn batches<R: ChunkReader + 'static>(
    source: CheckedPages<R>,
    metadata: &ArrowReaderMetadata,
    file: &FileBytes,
    from: u64,
) -> Result<Batches> {
    let mut skip = from;
    let mut first = 0;
    let mut left: u64 = 0;
    for group in metadata.metadata().row_groups() {
        let rows = group.num_rows().max(0) as u64;
        if left == 0 && rows <= skip {
            skip -= rows;
            first += 1;
        } else {
            left = left.saturating_add(rows);
        }
    }
    let groups: Vec<usize> = (first..metadata.metadata().num_row_groups()).collect();
    if groups.is_empty() {
        return Ok(Box::new(std::iter::empty()));
    }
    let selected = usize::try_from(left - skip).unwrap_or(usize::MAX);
    let selection: RowSelection =
        vec![RowSelector::skip(skip as usize), RowSelector::select(selected)].into();
    let fields = Some(metadata.schema().fields());
    let (schema, all) = (metadata.parquet_schema(), ProjectionMask::all());
    let levels =
        parquet_to_arrow_field_levels(schema, all, fields).map_err(|e| damaged(file, e))?;
    let (source, metadata) = (Arc::new(source), Arc::clone(metadata.metadata()));
    let groups = Groups { source, metadata, groups, made: Made::default() };
    let selection = (skip > 0).then_some(selection);
    let reader = ParquetRecordBatchReader::try_new_with_row_groups(
        &levels,
        &groups,
        ROWS_PER_BATCH,
        selection,
    );
    let reader = reader.map_err(|e| damaged(file, e))?;
    let file = file.clone();
    Ok(Box::new(reader.map(move |batch| batch.map_err(|e| damaged(&file, e.into())))))
}

fn damaged(file: &FileBytes, e: ParquetError) -> Error {
    file.error(format!("damaged or truncated Parquet file: {e}")).caused_by(e)
}
