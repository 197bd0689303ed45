//! Batches of a file in parts of which each can be worked with.
//!
//! A file can claim any number of rows that take no space, and columns can refer to one value from any
//! number of rows: dictionaries, views, lists that are views, runs. What follows writes each value out.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray, GenericByteArray, GenericByteViewArray, GenericListViewArray,
        OffsetSizeTrait, RecordBatch,
    },
    datatypes::{
        ArrowNativeType, ByteArrayType, ByteViewType, DataType, Fields, Int16Type, Int32Type,
        Int64Type,
    },
};

use super::bytes::FileBytes;
use crate::{
    data::stage::{BYTES_PER_BATCH, Batches},
    units::Bytes,
};

/// The most rows of a part.
const MOST_ROWS: usize = 1 << 16;
/// The bytes of a value in a row of a recipe, without those of a text and of its name.
const VALUE: u64 = 64;
/// The most bytes of a row that is written out.
const MOST_OF_ROW: u64 = 1 << 30;

/// The batches of a file in parts.
pub(super) fn in_parts(batches: Batches, file: &FileBytes) -> Batches {
    let file = file.clone();
    Box::new(batches.flat_map(move |batch| match batch {
        Ok(batch) => parts(batch, MOST_ROWS, BYTES_PER_BATCH as u64, file.clone()),
        Err(e) => Box::new(std::iter::once(Err(e))) as Batches,
    }))
}

/// Parts of at most `rows` rows that are at most `bytes` bytes, or a row.
fn parts(batch: RecordBatch, rows: usize, bytes: u64, file: FileBytes) -> Batches {
    // The next part is the last.
    let mut left = vec![batch];
    Box::new(std::iter::from_fn(move || {
        loop {
            let batch = left.pop()?;
            let len = batch.num_rows();
            let needed = if len > rows { u64::MAX } else { written(&batch) };
            if len <= 1 && needed > MOST_OF_ROW {
                left.clear();
                let (needed, most) = (Bytes(needed), Bytes(MOST_OF_ROW));
                let what = format!("a row of it has {needed} or more; at most {most} are read");
                return Some(Err(file.error(what)));
            }
            if len <= 1 || needed <= bytes {
                return Some(Ok(batch));
            }
            let half = len / 2;
            left.push(batch.slice(half, len - half));
            left.push(batch.slice(0, half));
        }
    }))
}

/// Bytes of a batch whose values are written out, with the names of its columns at each row; any number
/// above [`MOST_OF_ROW`] where they are more.
fn written(batch: &RecordBatch) -> u64 {
    counted(|left| {
        left.take_names(batch.schema().fields(), batch.num_rows())?;
        batch.columns().iter().try_for_each(|column| left.take_all(column))
    })
}

/// What `count` takes, up to a little more than [`MOST_OF_ROW`].
fn counted(count: impl FnOnce(&mut Left) -> Option<()>) -> u64 {
    let mut left = Left(MOST_OF_ROW + 1);
    count(&mut left);
    MOST_OF_ROW + 1 - left.0
}

/// Bytes that are still to be counted.
struct Left(u64);

impl Left {
    /// Takes `bytes`; `None` where none are left then.
    fn take(&mut self, bytes: u64) -> Option<()> {
        self.0 = self.0.saturating_sub(bytes);
        (self.0 > 0).then_some(())
    }

    fn take_names(&mut self, fields: &Fields, rows: usize) -> Option<()> {
        let names = fields.iter().map(|field| field.name().len() as u64 + VALUE);
        self.take(names.sum::<u64>().saturating_mul(rows as u64))
    }

    /// Takes the bytes of an array's values. Each value counts, so that this ends.
    fn take_all(&mut self, array: &ArrayRef) -> Option<()> {
        self.take(array.len() as u64)?;
        match array.data_type() {
            DataType::Utf8 => self.take(texts(array.as_string::<i32>())),
            DataType::LargeUtf8 => self.take(texts(array.as_string::<i64>())),
            DataType::Binary => self.take(texts(array.as_binary::<i32>())),
            DataType::LargeBinary => self.take(texts(array.as_binary::<i64>())),
            DataType::Utf8View => self.take(views(array.as_string_view())),
            DataType::BinaryView => self.take(views(array.as_binary_view())),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                self.take_between(list.offsets(), list.values())
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                self.take_between(list.offsets(), list.values())
            }
            DataType::Map(_, _) => {
                let map = array.as_map();
                let entries: ArrayRef = Arc::new(map.entries().clone());
                self.take_between(map.offsets(), &entries)
            }
            DataType::ListView(_) => self.take_views(array.as_list_view::<i32>()),
            DataType::LargeListView(_) => self.take_views(array.as_list_view::<i64>()),
            DataType::FixedSizeList(_, _) => self.take_all(array.as_fixed_size_list().values()),
            DataType::Struct(fields) => {
                self.take_names(fields, array.len())?;
                array.as_struct().columns().iter().try_for_each(|column| self.take_all(column))
            }
            DataType::Dictionary(_, _) => self.take_dictionary(array),
            DataType::RunEndEncoded(ends, _) => {
                let values = match ends.data_type() {
                    DataType::Int16 => array.as_run::<Int16Type>().values(),
                    DataType::Int32 => array.as_run::<Int32Type>().values(),
                    _ => array.as_run::<Int64Type>().values(),
                };
                // Each can be the largest.
                let largest = (0..values.len()).map(|at| one(values, at)).max().unwrap_or(0);
                self.take(largest.saturating_mul(array.len() as u64))
            }
            DataType::FixedSizeBinary(bytes) => {
                self.take(u64::from(bytes.unsigned_abs()).saturating_mul(array.len() as u64))
            }
            other => self.take((other.primitive_width().unwrap_or(0) * array.len()) as u64),
        }
    }

    /// Takes the values of lists that follow each other.
    fn take_between<O: OffsetSizeTrait>(&mut self, offsets: &[O], values: &ArrayRef) -> Option<()> {
        let [first, .., last] = offsets else { return Some(()) };
        let (first, last) = (first.as_usize(), last.as_usize());
        self.take_all(&values.slice(first, last - first))
    }

    /// Takes the values of lists that lie anywhere, and over each other.
    fn take_views<O: OffsetSizeTrait>(&mut self, lists: &GenericListViewArray<O>) -> Option<()> {
        let mut places = lists.offsets().iter().zip(lists.sizes().iter());
        places.try_for_each(|(offset, size)| {
            self.take_all(&lists.values().slice(offset.as_usize(), size.as_usize()))
        })
    }

    fn take_dictionary(&mut self, array: &ArrayRef) -> Option<()> {
        let dictionary = array.as_any_dictionary();
        let values = dictionary.values();
        if values.is_empty() {
            return Some(());
        }
        let mut sizes = vec![None; values.len()];
        dictionary.normalized_keys().into_iter().try_for_each(|key| {
            let size = *sizes[key].get_or_insert_with(|| one(values, key));
            self.take(size)
        })
    }
}

/// Bytes of one value.
fn one(values: &ArrayRef, at: usize) -> u64 {
    counted(|left| left.take_all(&values.slice(at, 1)))
}

fn texts<T: ByteArrayType>(array: &GenericByteArray<T>) -> u64 {
    let offsets = array.value_offsets();
    let ends = offsets.first().zip(offsets.last());
    let bytes = ends.map(|(first, last)| last.as_usize().saturating_sub(first.as_usize()));
    bytes.unwrap_or(0) as u64
}

fn views<T: ByteViewType + ?Sized>(array: &GenericByteViewArray<T>) -> u64 {
    array.lengths().map(u64::from).sum()
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{
            DictionaryArray, Int8Array, Int32Array, ListArray, ListViewArray, RunArray,
            StringArray, StringViewArray,
        },
        buffer::ScalarBuffer,
        datatypes::{Field, Int8Type},
    };

    use super::*;
    use crate::{
        data::source::bytes::{Compression, FileLocation},
        error::Result,
    };

    /// A text of 1,000 bytes.
    fn text() -> String {
        "a".repeat(1000)
    }

    fn batch(column: ArrayRef) -> RecordBatch {
        RecordBatch::try_from_iter_with_nullable([("c", column, true)]).unwrap()
    }

    /// 100 rows with one text, in each way to write it once.
    fn repeated() -> Vec<ArrayRef> {
        let texts: ArrayRef = Arc::new(StringArray::from(vec![text()]));
        let keys = Int8Array::from(vec![0; 100]);
        let dictionary: ArrayRef =
            Arc::new(DictionaryArray::<Int8Type>::try_new(keys, texts.clone()).unwrap());
        let view = StringViewArray::from(vec![text().as_str()]);
        let (views, buffers, _) = view.into_parts();
        let views = ScalarBuffer::from(vec![views[0]; 100]);
        let views = StringViewArray::try_new(views, buffers, None).unwrap();
        let field = Arc::new(Field::new("item", DataType::Utf8, true));
        let (offsets, sizes) = (vec![0; 100].into(), vec![1; 100].into());
        let lists = ListViewArray::try_new(field, offsets, sizes, texts.clone(), None).unwrap();
        let ends = Int32Array::from(vec![100]);
        let runs = RunArray::<Int32Type>::try_new(&ends, &texts).unwrap();
        vec![dictionary, Arc::new(views), Arc::new(lists), Arc::new(runs)]
    }

    #[test]
    fn what_is_written_once_counts_for_each_row() {
        let plain: ArrayRef = Arc::new(StringArray::from(vec![text(); 100]));
        for column in repeated().into_iter().chain([plain]) {
            let kind = column.data_type().clone();
            let bytes = written(&batch(column.clone()));
            // A value of a row has its own bytes, and each level of it counts for a byte.
            assert!((106_600..=106_900).contains(&bytes), "{kind}: {bytes}");
            let half = written(&batch(column.slice(50, 50)));
            assert!((53_300..=53_450).contains(&half), "{kind}: {half}");
        }
    }

    fn file() -> FileBytes {
        FileBytes::new("f".to_owned(), FileLocation::Embedded(&[]), Compression::None)
    }

    #[test]
    fn a_batch_is_read_in_parts() {
        for column in repeated() {
            let whole = batch(column);
            let all: Vec<_> = parts(whole.clone(), 100, 1 << 20, file()).collect();
            assert_eq!(all.len(), 1);
            let few =
                parts(whole.clone(), 100, 10_700, file()).map(|part| part.unwrap().num_rows());
            let few: Vec<_> = few.collect();
            assert_eq!(few.iter().sum::<usize>(), 100);
            assert!(few.iter().all(|rows| (5..=10).contains(rows)), "{few:?}");
            let rows = parts(whole, 30, 1 << 20, file()).map(|part| part.unwrap().num_rows());
            assert_eq!(rows.collect::<Vec<_>>(), [25; 4]);
        }
    }

    #[test]
    fn a_row_is_not_written_out_for_ever() {
        let texts: ArrayRef = Arc::new(StringArray::from(vec!["a".repeat(1 << 20)]));
        let keys = Int8Array::from(vec![0; 1100]);
        let values = DictionaryArray::<Int8Type>::try_new(keys, texts).unwrap();
        let list = |len| {
            let field = Arc::new(Field::new("item", values.data_type().clone(), true));
            let offsets = arrow::buffer::OffsetBuffer::from_lengths([len]);
            let values = Arc::new(values.slice(0, len));
            batch(Arc::new(ListArray::try_new(field, offsets, values, None).unwrap()))
        };
        assert!(parts(list(1000), 100, 1 << 20, file()).all(|part| part.is_ok()));
        let e = parts(list(1100), 100, 1 << 20, file()).find_map(Result::err).unwrap();
        assert!(e.to_string().contains("a row of it has 1.0 GiB or more"), "{e}");
    }
}
