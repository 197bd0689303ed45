//! The headers of a Parquet file's pages, checked before the reader makes room for what they promise.
//!
//! A page is decompressed into room of the size that its header says, and a dictionary gets room for as many
//! values as its header says. A file of a few bytes could so ask for gigabytes. [`CheckedPages`] is a file
//! whose columns are looked through, header by header, when the first byte of a column is asked for: its
//! pages follow each other, a dictionary has no more values than bytes, and the largest pages of the columns of
//! a row group fit into the memory together.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes as Buffer;
use parquet::{
    basic::{Compression, Type},
    errors::{ParquetError, Result},
    file::{
        metadata::ParquetMetaData,
        reader::{ChunkReader, Length},
    },
};

use super::parquet_check::{Checked, Thrift};
use crate::{tensor::available_bytes, units::Bytes};

/// Bytes of a page's header that are read at first, and at most: it holds the least and the greatest value.
const HEADER: u64 = 1 << 12;
const MOST_HEADER: u64 = 1 << 26;

/// A file whose pages are checked before they are read.
pub(super) struct CheckedPages<R> {
    source: R,
    unchecked: Arc<Unchecked>,
}

/// The columns of the row groups that were not read yet. Before the metadata are known there are none.
#[derive(Default)]
pub(super) struct Unchecked(Mutex<Columns>);

#[derive(Default)]
struct Columns {
    columns: Vec<Column>,
    /// Bytes of memory that the columns of a row group need together, as far as they were checked.
    needed: BTreeMap<usize, u64>,
}

/// The pages of one column in one row group.
struct Column {
    name: String,
    group: usize,
    range: Range<u64>,
    is_compressed: bool,
    /// Bytes of a value of its dictionary in memory, where it is of a fixed size.
    value_bytes: u64,
}

/// The header of a page, as far as sizes go.
#[derive(Debug, Default, PartialEq, Eq)]
struct Header {
    /// Its own bytes.
    len: u64,
    uncompressed: i64,
    compressed: i64,
    dictionary_values: i64,
}

impl<R> CheckedPages<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, unchecked: Arc::default() }
    }

    /// The columns that are still to be checked.
    pub(super) fn unchecked(&self) -> Arc<Unchecked> {
        Arc::clone(&self.unchecked)
    }
}

impl Unchecked {
    /// Adds the columns of a file.
    pub(super) fn add(&self, metadata: &ParquetMetaData) {
        let groups = metadata.row_groups().iter().enumerate();
        let all = groups.flat_map(|(group, columns)| {
            columns.columns().iter().map(move |column| {
                let (start, len) = column.byte_range();
                Column {
                    name: column.column_path().string(),
                    group,
                    range: start..start.saturating_add(len),
                    is_compressed: column.compression() != Compression::UNCOMPRESSED,
                    value_bytes: match column.column_type() {
                        Type::INT32 | Type::FLOAT => 4,
                        Type::INT64 | Type::DOUBLE => 8,
                        Type::INT96 => 12,
                        Type::BOOLEAN | Type::BYTE_ARRAY | Type::FIXED_LEN_BYTE_ARRAY => 0,
                    },
                }
            })
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).columns.extend(all);
    }

    /// Checks the columns that have the byte `start`.
    fn check(&self, start: u64, source: &impl ChunkReader) -> Checked<()> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Columns { columns, needed } = &mut *found;
        while let Some(at) = columns.iter().position(|column| column.range.contains(&start)) {
            let column = columns.swap_remove(at);
            let together = needed.entry(column.group).or_default();
            *together = together.saturating_add(column.needed(source)?);
            check_memory(&column.name, *together, available_bytes())?;
        }
        Ok(())
    }
}

fn check_memory(column: &str, needed: u64, available: Option<u64>) -> Checked<()> {
    match available {
        Some(available) if needed > available => {
            let (needed, available) = (Bytes(needed), Bytes(available));
            Err(format!(
                "the pages of a row group, those of column {column:?} among them, need {needed} of \
                 memory, and {available} are available"
            ))
        }
        _ => Ok(()),
    }
}

impl Column {
    /// Bytes of memory for its dictionary and its largest page.
    fn needed(&self, source: &impl ChunkReader) -> Checked<u64> {
        let (mut dictionary, mut largest) = (0u64, 0);
        let mut at = self.range.start;
        while at < self.range.end {
            let header = header_at(source, at, self.range.end)?;
            let size = |n: i64| u64::try_from(n).map_err(|_| self.wrong("a negative size"));
            let compressed = size(header.compressed)?;
            at = at.saturating_add(header.len).saturating_add(compressed);
            if at > self.range.end {
                return Err(self.wrong("a page that ends behind them"));
            }
            let bytes = if self.is_compressed { size(header.uncompressed)? } else { compressed };
            largest = largest.max(bytes);
            let values = size(header.dictionary_values)?;
            if values > bytes {
                return Err(self.wrong(&format!("{values} values in {bytes} bytes")));
            }
            dictionary = dictionary.saturating_add(values.saturating_mul(self.value_bytes));
        }
        Ok(dictionary.saturating_add(largest))
    }

    fn wrong(&self, what: &str) -> String {
        format!("the pages of column {:?} have {what}", self.name)
    }
}

/// The header of the page at `start` in a column that ends at `end`.
fn header_at(source: &impl ChunkReader, start: u64, end: u64) -> Checked<Header> {
    let mut window = HEADER;
    loop {
        let len = window.min(end - start);
        let bytes = source.get_bytes(start, len as usize).map_err(|e| e.to_string())?;
        match header(&bytes) {
            Err(_) if len < end - start && window < MOST_HEADER => window *= 16,
            read => return read.map_err(|e| format!("the header of a page is damaged: {e}")),
        }
    }
}

fn header(bytes: &[u8]) -> Checked<Header> {
    /// Of the structure `PageHeader` in Parquet's definition.
    const UNCOMPRESSED: i64 = 2;
    const COMPRESSED: i64 = 3;
    const DICTIONARY: i64 = 7;
    /// Of `DictionaryPageHeader`.
    const NUM_VALUES: i64 = 1;
    /// Thrift's kinds of whole numbers, and of structures.
    const WHOLE: Range<u8> = 4..7;
    const STRUCTURE: u8 = 12;

    let mut header = Header::default();
    let mut thrift = Thrift(bytes);
    thrift.fields(0, &mut |thrift, field, kind| {
        match field {
            UNCOMPRESSED if WHOLE.contains(&kind) => header.uncompressed = thrift.signed()?,
            COMPRESSED if WHOLE.contains(&kind) => header.compressed = thrift.signed()?,
            DICTIONARY if kind == STRUCTURE => thrift.fields(1, &mut |thrift, field, kind| {
                let is_count = field == NUM_VALUES && WHOLE.contains(&kind);
                if is_count {
                    header.dictionary_values = thrift.signed()?;
                }
                Ok(is_count)
            })?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    header.len = (bytes.len() - thrift.0.len()) as u64;
    Ok(header)
}

impl<R: ChunkReader> Length for CheckedPages<R> {
    fn len(&self) -> u64 {
        self.source.len()
    }
}

impl<R: ChunkReader> ChunkReader for CheckedPages<R> {
    type T = R::T;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        self.unchecked.check(start, &self.source).map_err(ParquetError::General)?;
        self.source.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Buffer> {
        self.unchecked.check(start, &self.source).map_err(ParquetError::General)?;
        self.source.get_bytes(start, length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, RecordBatch};
    use parquet::{
        arrow::{ArrowWriter, arrow_reader::ParquetRecordBatchReaderBuilder},
        file::properties::WriterProperties,
    };

    use super::*;
    use crate::data::source::parquet_columns::tests::portions;

    /// Values of which half are in the dictionary twice.
    const DIFFERENT: i64 = 9000;

    /// A file with one column, whose dictionary page comes first.
    fn file(compression: Compression) -> Vec<u8> {
        let values: Vec<i64> = (0..2 * DIFFERENT).map(|i| (i % DIFFERENT) * 7919).collect();
        let column = Arc::new(Int64Array::from(values)) as _;
        let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    /// The number of rows that are read.
    fn rows(bytes: &[u8]) -> std::result::Result<usize, String> {
        let source = CheckedPages::new(Buffer::copy_from_slice(bytes));
        let unchecked = source.unchecked();
        let builder = ParquetRecordBatchReaderBuilder::try_new(source).unwrap();
        unchecked.add(builder.metadata());
        let batches = builder.build().unwrap();
        batches.map(|batch| Ok(batch.map_err(|e| e.to_string())?.num_rows())).sum()
    }

    /// A whole number as Thrift writes it.
    fn number(n: i64) -> Vec<u8> {
        portions((n << 1) as u64)
    }

    /// The file with a number in its first page's header replaced by one of the same length.
    fn with(mut bytes: Vec<u8>, from: i64, to: i64) -> Vec<u8> {
        let (from, to) = (number(from), number(to));
        assert_eq!(from.len(), to.len());
        let is_there = |at: &usize| bytes[*at..].starts_with(&from);
        let found: Vec<_> = (0..40).filter(is_there).collect();
        assert!(!found.is_empty());
        found.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(&to));
        bytes
    }

    const BYTES: i64 = 8 * DIFFERENT;

    #[test]
    fn a_whole_file_is_read() {
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            assert_eq!(rows(&file(compression)), Ok(2 * DIFFERENT as usize));
        }
    }

    #[test]
    fn a_dictionary_has_no_more_values_than_bytes() {
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            let e = rows(&with(file(compression), DIFFERENT, BYTES + 1)).unwrap_err();
            let said = "the pages of column \"n\" have 72001 values in 72000 bytes";
            assert!(e.contains(said), "{e}");
        }
    }

    #[test]
    fn a_page_ends_before_its_column() {
        let e = rows(&with(file(Compression::UNCOMPRESSED), BYTES, 1_000_000)).unwrap_err();
        assert!(e.contains("the pages of column \"n\" have a page that ends behind them"), "{e}");
    }

    #[test]
    fn what_a_page_promises_must_fit_into_the_memory() {
        let bytes = Buffer::from(with(file(Compression::SNAPPY), BYTES, 1_000_000));
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).unwrap();
        let unchecked = Unchecked::default();
        unchecked.add(builder.metadata());
        let columns = unchecked.0.into_inner().unwrap().columns;
        let needed = columns[0].needed(&bytes).unwrap();
        assert_eq!(needed, 1_000_000 + BYTES as u64, "the page and its values");
        let e = check_memory("n", needed, Some(needed - 1)).unwrap_err();
        assert!(e.contains("of memory, and") && e.contains("column \"n\""), "{e}");
        assert_eq!(check_memory("n", needed, Some(needed)), Ok(()));
    }
}
