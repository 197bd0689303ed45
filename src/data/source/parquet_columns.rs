//! The columns of a Parquet file, page by page: what a page makes of few bytes is bounded before it is
//! decoded.
//!
//! The values of a page can be far larger than the page. Its header tells their number, and so does
//! the head of delta encodings, for which the reader makes room at once; a list of a row can have
//! as many values as a run of them tells; a text of a dictionary, or one that goes on from the text
//! before it, is written out once and made for each row. [`Pages`] gives a page to the reader after
//! it has looked at these. The sizes of pages themselves are the matter of `parquet_pages.rs`.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use parquet::{
    arrow::arrow_reader::RowGroups,
    basic::{Encoding, Type},
    column::page::{Page, PageIterator, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{
        metadata::{ParquetMetaData, RowGroupMetaData},
        reader::ChunkReader,
        serialized_reader::SerializedPageReader,
    },
    schema::types::ColumnDescPtr,
};

use super::parquet_check::Checked;
use crate::{data::stage::ROWS_PER_BATCH, tensor::available_bytes, units::Bytes};

/// Values of one page; writers begin another one after some ten thousand.
const MOST_VALUES: u64 = 1 << 24;
/// Values that the lists of a batch have in all: for each of its rows as many as a long context has.
const MOST_IN_LISTS: u64 = 1 << 27;

/// Row groups of a file.
pub(super) struct Groups<R> {
    pub(super) source: Arc<R>,
    pub(super) metadata: Arc<ParquetMetaData>,
    pub(super) groups: Vec<usize>,
    pub(super) made: Made,
}

/// Values in the pages of lists, since the last batch was there.
#[derive(Clone, Default)]
pub(super) struct Made(Arc<AtomicU64>);

/// One column in the row groups.
struct Column<R> {
    groups: std::vec::IntoIter<usize>,
    index: usize,
    source: Arc<R>,
    metadata: Arc<ParquetMetaData>,
    made: Made,
}

/// The pages of a column in one row group.
struct Pages<R: ChunkReader> {
    pages: SerializedPageReader<R>,
    column: ColumnDescPtr,
    made: Made,
}

impl Made {
    /// Begins a batch.
    pub(super) fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Adds the values of a page; returns whether they are still as many as a batch may have.
    fn add(&self, values: u64) -> bool {
        let before = self.0.fetch_add(values, Ordering::Relaxed);
        before.saturating_add(values) <= MOST_IN_LISTS
    }
}

impl<R: ChunkReader + 'static> RowGroups for Groups<R> {
    fn num_rows(&self) -> usize {
        let rows = self.row_groups().map(|group| usize::try_from(group.num_rows()).unwrap_or(0));
        rows.fold(0, usize::saturating_add)
    }

    fn column_chunks(&self, index: usize) -> Result<Box<dyn PageIterator>> {
        Ok(Box::new(Column {
            groups: self.groups.clone().into_iter(),
            index,
            source: Arc::clone(&self.source),
            metadata: Arc::clone(&self.metadata),
            made: self.made.clone(),
        }))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        Box::new(self.groups.iter().map(|group| self.metadata.row_group(*group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

impl<R: ChunkReader + 'static> PageIterator for Column<R> {}

impl<R: ChunkReader + 'static> Iterator for Column<R> {
    type Item = Result<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let group = self.metadata.row_group(self.groups.next()?);
        let column = group.column(self.index);
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let pages = SerializedPageReader::new(Arc::clone(&self.source), column, rows, None);
        Some(pages.map(|pages| {
            let (column, made) = (column.column_descr_ptr(), self.made.clone());
            Box::new(Pages { pages, column, made }) as _
        }))
    }
}

impl<R: ChunkReader> Iterator for Pages<R> {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl<R: ChunkReader> PageReader for Pages<R> {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.check(page).map_err(ParquetError::General)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        let page = self.pages.take_deferred_dictionary()?;
        if let Some(page) = &page {
            self.check(page).map_err(ParquetError::General)?;
        }
        Ok(page)
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl<R: ChunkReader> Pages<R> {
    fn check(&self, page: &Page) -> Checked<()> {
        let wrong =
            |what: &str| format!("a page of column {:?} {what}", self.column.path().string());
        let values = u64::from(page.num_values());
        if values > MOST_VALUES {
            return Err(wrong(&format!("has {values} values; at most {MOST_VALUES} are read")));
        }
        let is_text = self.column.physical_type() == Type::BYTE_ARRAY;
        let body = page.buffer();
        let largest = match page.encoding() {
            _ if page.is_dictionary_page() && is_text => longest_text(body),
            _ if page.is_dictionary_page() => 0,
            Encoding::DELTA_BINARY_PACKED => {
                delta(self.values_of(page)?, values).map_err(|e| wrong(&e))?;
                0
            }
            Encoding::DELTA_LENGTH_BYTE_ARRAY => {
                delta(self.values_of(page)?, values).map_err(|e| wrong(&e))?;
                0
            }
            Encoding::DELTA_BYTE_ARRAY => {
                let lengths = self.values_of(page)?;
                let behind = delta(lengths, values).map_err(|e| wrong(&e))?;
                delta(&lengths[behind..], values).map_err(|e| wrong(&e))?;
                // Each text can be all that the page has.
                body.len() as u64
            }
            _ => 0,
        };
        let texts = largest.saturating_mul(values_in_batch(page, values));
        if self.column.max_rep_level() > 0 && !self.made.add(values) {
            return Err(wrong(&format!(
                "makes lists of more than {MOST_IN_LISTS} values in a batch"
            )));
        }
        check_memory(texts, available_bytes()).map_err(|e| wrong(&e))
    }
}

impl<R: ChunkReader> Pages<R> {
    /// The bytes of a data page behind the levels of its values.
    fn values_of<'p>(&self, page: &'p Page) -> Checked<&'p [u8]> {
        let behind = |from: usize| {
            page.buffer().get(from..).ok_or_else(|| "a page ends in its levels".to_owned())
        };
        match page {
            Page::DictionaryPage { .. } => behind(0),
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                behind(*def_levels_byte_len as usize + *rep_levels_byte_len as usize)
            }
            Page::DataPage { def_level_encoding, rep_level_encoding, num_values, .. } => {
                let mut at = 0;
                for (most, encoding) in [
                    (self.column.max_rep_level(), rep_level_encoding),
                    (self.column.max_def_level(), def_level_encoding),
                ] {
                    if most > 0 {
                        at += levels_len(behind(at)?, *encoding, most, *num_values)?;
                    }
                }
                behind(at)
            }
        }
    }
}

/// The bytes of levels at the start of a page.
fn levels_len(bytes: &[u8], encoding: Encoding, most: i16, values: u32) -> Checked<usize> {
    if encoding == Encoding::RLE {
        let len = bytes.first_chunk().ok_or("a page ends in its levels")?;
        return Ok(4 + u32::from_le_bytes(*len) as usize);
    }
    // The older encoding, of as many bits as the greatest level has.
    let bits = u64::from(u16::BITS - most.unsigned_abs().leading_zeros());
    Ok((u64::from(values) * bits).div_ceil(8) as usize)
}

/// Values of which each can be the longest, in one batch.
fn values_in_batch(page: &Page, values: u64) -> u64 {
    let rows = ROWS_PER_BATCH as u64;
    if page.is_dictionary_page() { rows } else { values.min(rows) }
}

/// Bytes of the longest text in a dictionary, whose texts stand behind their lengths.
fn longest_text(mut body: &[u8]) -> u64 {
    let mut longest = 0;
    while let Some((len, rest)) = body.split_first_chunk() {
        let len = u32::from_le_bytes(*len);
        longest = longest.max(u64::from(len));
        // What is behind the end is the reader's matter.
        body = rest.get(len as usize..).unwrap_or_default();
    }
    longest
}

/// Bytes of numbers in delta encoding, which are at most `most`.
fn delta(bytes: &[u8], most: u64) -> Checked<usize> {
    let mut rest = Rest(bytes);
    let (block, parts, count) = (rest.number()?, rest.number()?, rest.number()?);
    rest.number()?;
    if count > most {
        return Err(format!("promises {count} values in delta encoding, and has {most}"));
    }
    let values_per_part = block.checked_div(parts).filter(|values| *values > 0);
    let values_per_part = values_per_part.ok_or("has blocks of no values in delta encoding")?;
    // The first stands in the head.
    let mut left = count.saturating_sub(1);
    while left > 0 {
        rest.number()?;
        let widths = rest.take(parts)?;
        for width in widths {
            if left > 0 {
                left = left.saturating_sub(values_per_part);
                rest.take(u64::from(*width).saturating_mul(values_per_part) / 8)?;
            }
        }
    }
    Ok(bytes.len() - rest.0.len())
}

/// What was not read yet of a page.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    /// A number in portions of seven bits; a sign is left in it.
    fn number(&mut self) -> Checked<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)? else { break };
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("has a number without an end in delta encoding".to_owned())
    }

    fn take(&mut self, len: u64) -> Checked<&'a [u8]> {
        let split = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
        let (taken, rest) = split.ok_or("ends within its delta encoding")?;
        self.0 = rest;
        Ok(taken)
    }
}

fn check_memory(needed: u64, available: Option<u64>) -> Checked<()> {
    match available {
        Some(available) if needed > available => {
            let (needed, available) = (Bytes(needed), Bytes(available));
            Err(format!(
                "makes a batch that can need {needed} of memory, and {available} are available"
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::array::{ArrayRef, Int64Array, ListArray, RecordBatch, StringArray};
    use arrow::datatypes::Int64Type;
    use bytes::Bytes as Buffer;
    use parquet::{
        arrow::{
            ArrowWriter, ProjectionMask,
            arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReader},
            parquet_to_arrow_field_levels,
        },
        basic::Compression,
        file::properties::{WriterProperties, WriterVersion},
    };

    use super::*;

    const ROWS: usize = 3000;

    fn file(column: ArrayRef, encoding: Encoding, version: WriterVersion) -> Vec<u8> {
        let batch = RecordBatch::try_from_iter_with_nullable([("c", column, true)]).unwrap();
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(encoding == Encoding::PLAIN)
            .set_encoding(encoding)
            .build();
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    /// The batches of a file, in which each page was checked.
    fn read(bytes: Vec<u8>) -> std::result::Result<Vec<RecordBatch>, String> {
        let source = Buffer::from(bytes);
        let metadata = ArrowReaderMetadata::load(&source, Default::default()).unwrap();
        let fields = Some(metadata.schema().fields());
        let schema = metadata.parquet_schema();
        let levels = parquet_to_arrow_field_levels(schema, ProjectionMask::all(), fields).unwrap();
        let metadata = Arc::clone(metadata.metadata());
        let groups = (0..metadata.num_row_groups()).collect();
        let source = Arc::new(source);
        let groups = Groups { source, metadata, groups, made: Made::default() };
        let reader =
            ParquetRecordBatchReader::try_new_with_row_groups(&levels, &groups, ROWS, None);
        reader.unwrap().map(|batch| batch.map_err(|e| e.to_string())).collect()
    }

    fn texts() -> ArrayRef {
        let text = |i: usize| (!i.is_multiple_of(7)).then(|| format!("text {}", i * i));
        Arc::new(StringArray::from_iter((0..ROWS).map(text)))
    }

    fn numbers() -> ArrayRef {
        Arc::new(Int64Array::from_iter((0..ROWS as i64).map(|i| (i % 5 > 0).then_some(i * i))))
    }

    const VERSIONS: [WriterVersion; 2] = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0];

    #[test]
    fn whole_files_are_read() {
        let cases = [
            (texts(), Encoding::DELTA_BYTE_ARRAY),
            (texts(), Encoding::DELTA_LENGTH_BYTE_ARRAY),
            (texts(), Encoding::PLAIN),
            (numbers(), Encoding::DELTA_BINARY_PACKED),
            (numbers(), Encoding::PLAIN),
        ];
        for (column, encoding) in cases {
            for version in VERSIONS {
                let batches = read(file(Arc::clone(&column), encoding, version)).unwrap();
                assert_eq!(batches.len(), 1, "{encoding}");
                assert_eq!(batches[0].column(0).as_ref(), column.as_ref(), "{encoding}");
            }
        }
        let lists = (0..ROWS).map(|i| Some((0..i % 4).map(|n| Some(n as i64))));
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists));
        for version in VERSIONS {
            let bytes = file(Arc::clone(&lists), Encoding::DELTA_BINARY_PACKED, version);
            assert_eq!(read(bytes).unwrap()[0].num_rows(), ROWS);
        }
    }

    /// A number in portions of seven bits.
    pub(in crate::data::source) fn portions(mut n: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    }

    /// The head of delta encoding: 128 values in a block of 4 parts, and the number of all.
    fn head(count: u64) -> Vec<u8> {
        [vec![0x80, 1, 4], portions(count)].concat()
    }

    #[test]
    fn delta_encoding_has_no_more_values_than_its_page() {
        let values = ROWS - ROWS.div_ceil(7);
        for encoding in [Encoding::DELTA_BYTE_ARRAY, Encoding::DELTA_LENGTH_BYTE_ARRAY] {
            for version in VERSIONS {
                let mut bytes = file(texts(), encoding, version);
                let (from, to) = (head(values as u64), head(16_000));
                assert_eq!(from.len(), to.len());
                let places: Vec<_> =
                    (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&from)).collect();
                assert!(!places.is_empty(), "{encoding}");
                // The last is that of what is added to the text before, where there are two.
                for place in places {
                    let whole = bytes.clone();
                    bytes[place..place + to.len()].copy_from_slice(&to);
                    let e = read(std::mem::replace(&mut bytes, whole)).unwrap_err();
                    assert!(e.contains("promises 16000 values in delta encoding"), "{e}");
                }
            }
        }
    }

    #[test]
    fn damaged_delta_encoding_is_an_error() {
        assert_eq!(delta(&[0x80, 1, 4, 1, 0], 1), Ok(5), "one value, in the head");
        // 40 values: the first, and 39 in two parts of 32 values of one bit and of none.
        let two_parts = [vec![0x80, 1, 4, 40, 0, 0, 1, 0, 9, 9], vec![7; 4]].concat();
        assert_eq!(delta(&two_parts, 40), Ok(14));
        for damaged in [&two_parts[..12], &two_parts[..8], &[0x80, 1, 0, 9, 0], &[0, 1, 9, 0]] {
            assert!(delta(damaged, 40).is_err(), "{damaged:?}");
        }
        assert!(delta(&[0xff; 20], 40).is_err());
    }

    #[test]
    fn what_a_batch_can_need_must_fit_into_the_memory() {
        assert_eq!(longest_text(&[1, 0, 0, 0, b'a', 3, 0, 0, 0, b'b', b'c', b'd']), 3);
        assert_eq!(longest_text(&[255, 255, 255, 255, 0]), u64::from(u32::MAX));
        assert_eq!(check_memory(9, Some(9)), Ok(()));
        let e = check_memory(10, Some(9)).unwrap_err();
        assert!(e.contains("of memory, and"), "{e}");
        let made = Made::default();
        assert!(made.add(MOST_IN_LISTS) && !made.add(1));
        made.begin();
        assert!(made.add(1));
    }
}
