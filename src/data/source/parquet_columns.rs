//! The columns of a Parquet file, page by page: what a page makes of few bytes is bounded before it is
//! decoded.
//!
//! The values of a page can be far larger than the page. Its header tells their number, and so does
//! the head of delta encodings, for which the reader makes room at once; a list of a row can have
//! as many values as a run of them tells; a text of a dictionary, or one that goes on from the text
//! before it, is written out once and made for each row. [`Pages`] gives a page to the reader after
//! it has measured these, row by row (`parquet_repeats.rs`). The sizes of pages themselves are the
//! matter of `parquet_pages.rs`.

use std::sync::Arc;

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

use super::{
    parquet_check::Checked,
    parquet_encodings::{Runs, delta, deltas, split_levels},
    parquet_repeats::{Amount, Dictionary, Made, Slots, Values},
};
use crate::{data::stage::ROWS_PER_BATCH, tensor::available_bytes, units::Bytes};

/// Values of a page in delta encoding, for which the reader makes room at once; writers begin another
/// page after some ten thousand.
const MOST_DELTAS: u64 = 1 << 24;

/// Row groups of a file.
pub(super) struct Groups<R> {
    pub(super) source: Arc<R>,
    pub(super) metadata: Arc<ParquetMetaData>,
    pub(super) groups: Vec<usize>,
    pub(super) made: Made,
}

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
    index: usize,
    column: ColumnDescPtr,
    dictionary: Dictionary,
    /// Repeated bytes of a batch that need no closer look: all columns together stay below the limit.
    few: u64,
    made: Made,
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
        let group = self.groups.next()?;
        Some(self.pages(group).map(|pages| Box::new(pages) as _))
    }
}

impl<R: ChunkReader> Column<R> {
    fn pages(&self, group: usize) -> Result<Pages<R>> {
        let group = self.metadata.row_group(group);
        let column = group.column(self.index);
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let pages = Pages {
            pages: SerializedPageReader::new(Arc::clone(&self.source), column, rows, None)?,
            index: self.index,
            column: column.column_descr_ptr(),
            dictionary: Dictionary::default(),
            few: self.made.most_repeated / group.num_columns().max(1) as u64,
            made: self.made.clone(),
        };
        // The reader makes room for a batch of them before it looks at a page.
        let room = u64::from(pages.fixed()) * ROWS_PER_BATCH as u64;
        check_memory(room, available_bytes()).map_err(|e| pages.wrong(&e))?;
        Ok(pages)
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
            self.check(page).map_err(|e| self.wrong(&e))?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    /// A dictionary is read before the pages that refer to it, which are measured by it.
    fn supports_deferred_dictionary(&self) -> bool {
        false
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl<R: ChunkReader> Pages<R> {
    fn wrong(&self, what: &str) -> ParquetError {
        ParquetError::General(format!("a page of column {:?} {what}", self.column.path().string()))
    }

    /// Bytes of a value, where all have the same number; a null of such a column takes as many.
    fn fixed(&self) -> u32 {
        match self.column.physical_type() {
            Type::FIXED_LEN_BYTE_ARRAY => u32::try_from(self.column.type_length()).unwrap_or(0),
            _ => 0,
        }
    }

    fn check(&mut self, page: &Page) -> Checked<()> {
        if !page.is_dictionary_page() {
            let amount = self.amount(page)?;
            let repeated = self.made.add(self.index, amount)?;
            return check_memory(repeated, available_bytes());
        }
        self.dictionary = match self.column.physical_type() {
            Type::BYTE_ARRAY => Dictionary::of_texts(page.buffer()),
            Type::FIXED_LEN_BYTE_ARRAY => Dictionary::of_equal(self.fixed(), page.buffer()),
            // A number takes no more bytes than its list has for it anyway.
            _ => Dictionary::default(),
        };
        Ok(())
    }

    /// Measures a data page: the amount of it that a batch can have.
    fn amount(&mut self, page: &Page) -> Checked<Amount> {
        let (slots, body) = self.slots(page)?;
        let values = match page.encoding() {
            Encoding::DELTA_BINARY_PACKED | Encoding::DELTA_LENGTH_BYTE_ARRAY => {
                delta(body, most_deltas(slots.count)?)?;
                Values::Alone
            }
            Encoding::DELTA_BYTE_ARRAY => {
                let most = most_deltas(slots.count)?;
                let mut shared = Vec::new();
                let mut take = |len| shared.push(u64::try_from(len).unwrap_or(0));
                let behind = deltas(body, most, &mut take)?;
                delta(&body[behind..], most)?;
                Values::Shared(shared.into_iter())
            }
            Encoding::RLE_DICTIONARY | Encoding::PLAIN_DICTIONARY => {
                Values::Places(Runs::of_places(body)?, &mut self.dictionary)
            }
            _ => Values::Alone,
        };
        Ok(slots.amount(values, self.few))
    }

    /// The places for values of a data page, and the bytes behind their levels.
    fn slots<'p>(&self, page: &'p Page) -> Checked<(Slots<'p>, &'p [u8])> {
        let (most_rep, most_def) = (self.column.max_rep_level(), self.column.max_def_level());
        let mut body = page.buffer().as_ref();
        let levels = |bytes, encoding, most: i16| match most {
            0 => Runs::constant(0),
            _ => Runs::of_levels(bytes, encoding, most),
        };
        let (starts, defined) = match page {
            Page::DataPage { def_level_encoding, rep_level_encoding, num_values, .. } => {
                let mut split = |encoding, most| {
                    if most == 0 {
                        return Ok(Runs::constant(0));
                    }
                    let (bytes, behind) = split_levels(body, encoding, most, *num_values)?;
                    body = behind;
                    Checked::Ok(levels(bytes, encoding, most))
                };
                (split(*rep_level_encoding, most_rep)?, split(*def_level_encoding, most_def)?)
            }
            Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
                let mut split = |len: u32, most| {
                    let (bytes, behind) =
                        body.split_at_checked(len as usize).ok_or("ends in its levels")?;
                    body = behind;
                    Checked::Ok(levels(bytes, Encoding::RLE, most))
                };
                (split(*rep_levels_byte_len, most_rep)?, split(*def_levels_byte_len, most_def)?)
            }
            Page::DictionaryPage { .. } => (Runs::constant(0), Runs::constant(0)),
        };
        let slots = Slots {
            count: page.num_values().into(),
            starts,
            defined,
            value_level: most_def.unsigned_abs().into(),
            in_lists: most_rep > 0,
            fixed: self.fixed(),
        };
        Ok((slots, body))
    }
}

/// The values that delta encoding may promise in a page of `count` places.
fn most_deltas(count: u64) -> Checked<u64> {
    match count <= MOST_DELTAS {
        true => Ok(count),
        false => {
            Err(format!("has {count} values in delta encoding; at most {MOST_DELTAS} are read"))
        }
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
    use arrow::{
        array::{
            Array, ArrayRef, DictionaryArray, FixedSizeBinaryArray, Int32Array, Int64Array,
            ListArray, RecordBatch, StringArray,
        },
        buffer::OffsetBuffer,
        datatypes::{DataType, Field, Int32Type, Int64Type},
    };
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
        read_with(bytes, Made::default())
    }

    fn read_with(bytes: Vec<u8>, made: Made) -> std::result::Result<Vec<RecordBatch>, String> {
        let source = Buffer::from(bytes);
        let metadata = ArrowReaderMetadata::load(&source, Default::default()).unwrap();
        let fields = Some(metadata.schema().fields());
        let schema = metadata.parquet_schema();
        let levels = parquet_to_arrow_field_levels(schema, ProjectionMask::all(), fields).unwrap();
        let metadata = Arc::clone(metadata.metadata());
        let groups = (0..metadata.num_row_groups()).collect();
        let source = Arc::new(source);
        let groups = Groups { source, metadata, groups, made };
        let reader =
            ParquetRecordBatchReader::try_new_with_row_groups(&levels, &groups, ROWS, None);
        reader.unwrap().map(|batch| batch.map_err(|e| e.to_string())).collect()
    }

    /// The number of rows that are read.
    fn rows(bytes: Vec<u8>, most_repeated: usize) -> std::result::Result<usize, String> {
        let made = Made::with_at_most(most_repeated as u64);
        Ok(read_with(bytes, made)?.iter().map(RecordBatch::num_rows).sum())
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

    /// Lists of one text each of `len` bytes, `in_row` to a row, which a dictionary has once.
    fn lists_of_one(len: usize, rows: usize, in_row: usize) -> ArrayRef {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a".repeat(len)]));
        let keys = Int32Array::from(vec![0; rows * in_row]);
        let values: ArrayRef =
            Arc::new(DictionaryArray::<Int32Type>::try_new(keys, texts).unwrap());
        let field = Arc::new(Field::new("item", values.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths(vec![in_row; rows]);
        Arc::new(ListArray::try_new(field, offsets, values, None).unwrap())
    }

    const MB: usize = 1_000_000;

    #[test]
    fn texts_of_a_dictionary_are_counted_for_each_value_of_lists() {
        for version in VERSIONS {
            let rows = |in_row| {
                let bytes = file(lists_of_one(10, 2000, in_row), Encoding::PLAIN, version);
                rows(bytes, 1024 * 1000)
            };
            assert_eq!(rows(100), Ok(2000));
            let e = rows(101).unwrap_err();
            let said = "a page of column \"c.list.item\" repeats what it has once: 1024 rows have";
            assert!(e.contains(said), "{e}");
        }
    }

    #[test]
    fn texts_of_a_dictionary_are_counted_for_each_row() {
        let column = |len: usize, rows: usize| -> ArrayRef {
            let texts: ArrayRef =
                Arc::new(StringArray::from(vec!["a".repeat(len), "b".to_owned()]));
            let keys = Int32Array::from_iter((0..rows).map(|i| Some(i32::from(i % 2 == 1))));
            Arc::new(DictionaryArray::<Int32Type>::try_new(keys, texts).unwrap())
        };
        for version in VERSIONS {
            let bytes = |len, rows| file(column(len, rows), Encoding::PLAIN, version);
            // Every other row has it, and the first time is none too many.
            assert_eq!(rows(bytes(10_000, 201), MB + 100), Ok(201));
            assert!(
                rows(bytes(10_000, 203), MB + 100).unwrap_err().contains("repeats what it has")
            );
            // A batch has 1,024 rows.
            assert_eq!(rows(bytes(1900, 3000), MB), Ok(3000));
            assert!(rows(bytes(2000, 3000), MB).unwrap_err().contains("repeats what it has"));
        }
    }

    #[test]
    fn texts_that_go_on_from_the_one_before_are_counted() {
        let column = |len| {
            let values = Arc::new(StringArray::from(vec!["a".repeat(len); 20 * 100]));
            let field = Arc::new(Field::new("item", DataType::Utf8, true));
            let offsets = OffsetBuffer::from_lengths(vec![100; 20]);
            Arc::new(ListArray::try_new(field, offsets, values, None).unwrap()) as ArrayRef
        };
        for version in VERSIONS {
            let bytes = |len| file(column(len), Encoding::DELTA_BYTE_ARRAY, version);
            assert_eq!(rows(bytes(500), MB), Ok(20));
            assert!(rows(bytes(510), MB).unwrap_err().contains("repeats what it has once"));
        }
    }

    #[test]
    fn nulls_of_a_fixed_size_take_memory() {
        let column = |len: i32| -> ArrayRef {
            let one = vec![7; len as usize];
            let values = (0..2000).map(|i| (i == 0).then_some(&one));
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, len).unwrap())
        };
        for version in VERSIONS {
            let bytes = |len| file(column(len), Encoding::PLAIN, version);
            assert_eq!(rows(bytes(900), MB), Ok(2000));
            assert!(rows(bytes(1000), MB).unwrap_err().contains("repeats what it has once"));
        }
    }

    #[test]
    fn what_a_batch_can_need_must_fit_into_the_memory() {
        assert_eq!(check_memory(9, Some(9)), Ok(()));
        let e = check_memory(10, Some(9)).unwrap_err();
        assert!(e.contains("of memory, and"), "{e}");
    }
}
