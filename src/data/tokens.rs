//! Columns of token ids: any list of integers, read as 64-bit ids.
//!
//! Datasets tokenized elsewhere come as list, large list or fixed-size list of int32, int64, uint16
//! or uint32. Everything behind this file sees one type.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, Int32Array, Int64Array, ListArray, RecordBatch, cast::AsArray},
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef},
};

use super::stage::{is_text, no_column};
use crate::{
    config::options::option_words,
    error::{Code, Error, Result},
};

option_words! {
    /// Which rows are filled up with padding tokens, and to what length.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Padding {
        /// None: rows keep their own lengths.
        None = "none",
        /// Each row to the longest of its micro batch.
        Longest = "longest",
        /// Each row to `max_length`.
        MaxLength = "max_length",
    }
}

/// The column of token ids.
pub(super) const INPUT_IDS: &str = "input_ids";
/// The column that is 1 where a token is real and 0 where it is padding.
pub(super) const ATTENTION_MASK: &str = "attention_mask";
/// The column of targets, where a dataset brings its own.
pub(super) const LABELS: &str = "labels";

/// The column of positions, which count anew from 0 with each text of a row.
pub(super) const POSITION_IDS: &str = "position_ids";

/// How the rows of a token column may be brought to one length; kept in the column's metadata, so
/// that it survives every operation between `tokenize` and the loader.
const PADDING_KEY: &str = "dsr.padding";
const PAD_ID_KEY: &str = "dsr.pad_id";

/// A list-of-int32 column named `name`.
pub(super) fn int32_list(name: &str) -> Field {
    Field::new(name, DataType::List(item()), false)
}

/// The field of the values of [`int32_list`].
fn item() -> FieldRef {
    Arc::new(Field::new_list_field(DataType::Int32, false))
}

/// A column of [`int32_list`]: rows of so many values each, one behind the other.
pub(super) fn lists(values: Vec<i32>, lengths: impl IntoIterator<Item = usize>) -> ArrayRef {
    let (offsets, values) = (OffsetBuffer::from_lengths(lengths), Int32Array::from(values));
    Arc::new(ListArray::new(item(), offsets, Arc::new(values), None))
}

/// Remembers in the column how its rows are padded.
pub(super) fn with_padding(field: Field, padding: Padding, pad_id: u32) -> Field {
    let name = if padding == Padding::Longest { "longest" } else { "max_length" };
    field.with_metadata(HashMap::from([
        (PADDING_KEY.to_owned(), name.to_owned()),
        (PAD_ID_KEY.to_owned(), pad_id.to_string()),
    ]))
}

/// The key of a column of labels that are answers, kept as the padding is.
const ANSWERS_KEY: &str = "dsr.answers";

/// The column of labels that are the tokens of other texts, for a model with an encoder: that there are as many
/// as input ids is chance.
pub(super) fn answers() -> Field {
    let metadata = HashMap::from([(ANSWERS_KEY.to_owned(), "true".to_owned())]);
    int32_list(LABELS).with_metadata(metadata)
}

/// Whether rows have answers.
pub(super) fn have_answers(schema: &Schema) -> bool {
    let labels = schema.field_with_name(LABELS);
    labels.is_ok_and(|labels| labels.metadata().contains_key(ANSWERS_KEY))
}

/// Refuses rows with answers, which cannot be joined.
pub(super) fn check_joinable(schema: &Schema) -> Result<()> {
    if !have_answers(schema) {
        return Ok(());
    }
    let message = "the rows are pairs of texts, which `pack` cannot join";
    Err(Error::new(Code::Data, message)
        .hint("pairs go to a model with an encoder such as T5 row by row: leave .pack out"))
}

/// The id to pad with, where the rows are to be padded to the longest of their batch.
pub(super) fn pad_to_longest(field: &Field) -> Option<i64> {
    let longest = field.metadata().get(PADDING_KEY)? == "longest";
    longest.then(|| field.metadata().get(PAD_ID_KEY)?.parse().ok()).flatten()
}

/// Checks that a column can hold token ids.
pub(super) fn check_type(field: &Field) -> Result<()> {
    let items = match field.data_type() {
        DataType::List(f) | DataType::LargeList(f) | DataType::FixedSizeList(f, _) => f,
        other => {
            bail!(Code::Data, "column \"{}\" is {other}; expected a list of integers", field.name())
        }
    };
    if !items.data_type().is_integer() {
        bail!(
            Code::Data,
            "column \"{}\" is a list of {}; expected a list of integers",
            field.name(),
            items.data_type()
        );
    }
    Ok(())
}

/// A token column of one batch: row `i` is a slice of ids.
pub(super) struct TokenLists {
    values: Int64Array,
    ends: Vec<usize>,
    start: usize,
}

impl TokenLists {
    /// The column `name` of `batch`, or `None` if there is no such column.
    pub(super) fn of(batch: &RecordBatch, name: &str) -> Result<Option<Self>> {
        batch.column_by_name(name).map(|column| Self::new(column, name)).transpose()
    }

    fn new(column: &ArrayRef, name: &str) -> Result<Self> {
        if column.null_count() > 0 {
            bail!(
                Code::Data,
                "column \"{name}\" has a row that is null; expected a list of integers"
            );
        }
        let (values, start, ends): (_, _, Vec<usize>) = match column.data_type() {
            DataType::List(_) => {
                let list = column.as_list::<i32>();
                let offsets = list.offsets();
                let ends = offsets[1..].iter().map(|&o| o as usize).collect();
                (list.values(), offsets[0] as usize, ends)
            }
            DataType::LargeList(_) => {
                let list = column.as_list::<i64>();
                let offsets = list.offsets();
                let ends = offsets[1..].iter().map(|&o| o as usize).collect();
                (list.values(), offsets[0] as usize, ends)
            }
            DataType::FixedSizeList(_, len) => {
                let ends = (1..=column.len()).map(|row| row * *len as usize).collect();
                (column.as_fixed_size_list().values(), 0, ends)
            }
            other => bail!(Code::Data, "column \"{name}\" is {other}; expected a list of integers"),
        };
        // Only the values of these rows: a slice of a batch shares the values of the whole.
        let end = ends.last().copied().unwrap_or(start);
        let values = values.slice(start, end - start);
        let values = cast(&values, &DataType::Int64).map_err(|e| {
            Error::new(Code::Data, format!("column \"{name}\" does not hold token ids: {e}"))
        })?;
        let values = values.as_primitive::<Int64Type>().clone();
        if values.null_count() > 0 {
            bail!(Code::Data, "column \"{name}\" has a null inside a list; expected integers");
        }
        Ok(Self { values, ends, start })
    }

    /// The number of rows.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The ids of row `row`.
    pub(super) fn row(&self, row: usize) -> &[i64] {
        let from = if row == 0 { self.start } else { self.ends[row - 1] };
        &self.values.values()[from - self.start..self.ends[row] - self.start]
    }
}

/// Checks for a column of token ids, pointing to `tokenize` where there is text instead.
pub(super) fn require_tokens(schema: &SchemaRef, doing: &str) -> Result<()> {
    let Ok(field) = schema.field_with_name(INPUT_IDS) else {
        let e = no_column(INPUT_IDS, schema);
        let text = schema.fields().iter().find(|f| is_text(f.data_type()));
        return Err(e.hint_if(text.map(|text| match text.name().as_str() {
            "text" => format!("call .tokenize(tokenizer) before .{doing}"),
            name => format!("call .tokenize(tokenizer, #{{ field: \"{name}\" }}) before .{doing}"),
        })));
    };
    check_type(field)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{FixedSizeListArray, LargeListArray},
        datatypes::{Int32Type, UInt16Type, UInt32Type},
    };

    use super::*;

    fn rows(column: ArrayRef) -> Vec<Vec<i64>> {
        let lists = TokenLists::new(&column, INPUT_IDS).unwrap();
        (0..lists.len()).map(|i| lists.row(i).to_vec()).collect()
    }

    #[test]
    fn every_list_of_integers_reads_the_same() {
        let data = || [Some(vec![Some(1), Some(2)]), Some(vec![Some(3), Some(4)])];
        let expected = [[1, 2], [3, 4]];
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>(data());
        let fixed = FixedSizeListArray::from_iter_primitive::<UInt32Type, _, _>(
            data().map(|r| {
                r.map(|r| r.into_iter().map(|v| v.map(|v: i32| v as u32)).collect::<Vec<_>>())
            }),
            2,
        );
        let large = LargeListArray::from_iter_primitive::<UInt16Type, _, _>(data().map(|r| {
            r.map(|r| r.into_iter().map(|v| v.map(|v: i32| v as u16)).collect::<Vec<_>>())
        }));
        assert_eq!(rows(Arc::new(list.clone())), expected);
        assert_eq!(rows(Arc::new(fixed.clone())), expected);
        assert_eq!(rows(Arc::new(large)), expected);
        assert_eq!(rows(Arc::new(list.slice(1, 1))), [[3, 4]]);
        assert_eq!(rows(Arc::new(fixed.slice(1, 1))), [[3, 4]]);
    }

    #[test]
    fn a_null_is_refused() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![None, Some(1)])]);
        let column: ArrayRef = Arc::new(list);
        assert!(TokenLists::new(&column, INPUT_IDS).is_err());
    }
}
