//! Between Arrow's columns and the JSON objects that recipes see, without a change of any value.
//!
//! On the way out, times stand in UTC and bytes are text where they are UTF-8. On the way back, a
//! number is stored where the column can hold exactly it. What has no equal on the other side is an
//! error that names the row or the value: nothing is rounded, cut or encoded in silence.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StructArray, make_array},
    compute::{CastOptions, cast, cast_with_options},
    datatypes::{DataType, Field, FieldRef, Float64Type, Schema, SchemaRef},
    error::ArrowError,
    json::{
        ReaderBuilder, WriterBuilder, reader::infer_json_schema_from_iterator,
        writer::LineDelimited,
    },
};
use serde_json::{Number, Value};

use super::places;
use crate::error::{Code, Error, Result};

/// One row: the columns' names and values.
pub type Row = serde_json::Map<String, Value>;

/// Above it, not every whole number is a float64.
const MOST_EXACT: u64 = 1 << 53;

/// The rows of one batch, of which the first is row `first_row`; a null is `null`, never a missing key.
pub(super) fn to_rows(batch: &RecordBatch, first_row: u64) -> Result<Vec<Row>> {
    let batch = &shown_batch(batch, first_row)?;
    let mut writer =
        WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
    let written = writer.write(batch).and_then(|()| writer.finish());
    written.map_err(|e| unreadable(&e))?;
    serde_json::Deserializer::from_slice(&writer.into_inner())
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|e| unreadable(&e))
}

fn unreadable(e: &dyn std::error::Error) -> Error {
    Error::new(Code::Data, format!("these rows cannot be shown as values: {e}"))
}

/// The batch with columns that JSON can say exactly.
fn shown_batch(batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
    let schema = batch.schema();
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let column = shown(column).map_err(|what| {
            // The column is looked at once more, row by row, to find the place.
            let is_bad = |row: &usize| shown(&column.slice(*row, 1)).is_err();
            let row = (0..column.len()).find(is_bad).unwrap_or(0) as u64 + first_row;
            let name = field.name();
            Error::new(Code::Data, format!("row {row}: \"{name}\" {what}"))
                .hint(format!("leave the column out with .remove(\"{name}\")"))
        })?;
        fields.push(field.as_ref().clone().with_data_type(column.data_type().clone()));
        columns.push(column);
    }
    let schema = Arc::new(Schema::new(fields));
    RecordBatch::try_new(schema, columns).map_err(|e| unreadable(&e))
}

/// A column as JSON can say it; what it cannot say is named.
fn shown(column: &ArrayRef) -> Result<ArrayRef, String> {
    let wrong = |e: ArrowError| format!("cannot be shown: {e}");
    match column.data_type() {
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => as_text(column),
        DataType::Timestamp(unit, Some(zone)) if zone.as_ref() != "+00:00" => {
            let utc = DataType::Timestamp(*unit, Some("+00:00".into()));
            let data = column.to_data().into_builder().data_type(utc).build().map_err(wrong)?;
            Ok(make_array(data))
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let wide = cast(column, &DataType::Float64).map_err(wrong)?;
            match wide.as_primitive::<Float64Type>().iter().flatten().find(|v| !v.is_finite()) {
                Some(value) => Err(format!("is {value}, which is no number of a row")),
                None => Ok(column.clone()),
            }
        }
        DataType::List(field) => {
            let list = column.as_list::<i32>();
            let (from, to) = (list.value_offsets()[0], list.value_offsets()[list.len()]);
            let used = list.values().slice(from as usize, (to - from) as usize);
            // Values between the rows, which nobody sees, may be anything: they stay.
            let values = match shown(&used) {
                Ok(values) if values.data_type() == field.data_type() => return Ok(column.clone()),
                Ok(_) => shown(list.values())?,
                Err(what) => return Err(what),
            };
            let field = field.as_ref().clone().with_data_type(values.data_type().clone());
            let (offsets, nulls) = (list.offsets().clone(), list.nulls().cloned());
            let list = ListArray::try_new(Arc::new(field), offsets, values, nulls);
            Ok(Arc::new(list.map_err(wrong)?))
        }
        DataType::Struct(fields) => {
            let all = column.as_struct();
            let parts = all.columns().iter().map(shown).collect::<Result<Vec<_>, _>>()?;
            let field = |(field, part): (&FieldRef, &ArrayRef)| {
                field.as_ref().clone().with_data_type(part.data_type().clone())
            };
            let fields: Vec<Field> = fields.iter().zip(&parts).map(field).collect();
            let all = StructArray::try_new(fields.into(), parts, all.nulls().cloned());
            Ok(Arc::new(all.map_err(wrong)?))
        }
        _ => Ok(column.clone()),
    }
}

/// Bytes as the text that they are.
pub(super) fn as_text(column: &ArrayRef) -> Result<ArrayRef, String> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let bytes = match column.data_type() {
        DataType::FixedSizeBinary(_) => cast(column, &DataType::LargeBinary),
        _ => Ok(column.clone()),
    };
    bytes
        .and_then(|bytes| cast_with_options(&bytes, &DataType::LargeUtf8, &strict))
        .map_err(|_| "holds bytes that are no UTF-8 text".to_owned())
}

/// Rows as a batch with the columns of `schema`; a missing key is a null, another key an error, and so
/// is a number that its column does not hold exactly.
pub(super) fn from_rows(schema: &SchemaRef, rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    if places::taken(schema, rows) > places::MOST {
        let most = places::MOST;
        let what = format!("lists of objects take more than {most} places for values");
        return Err(ArrowError::JsonError(what));
    }
    let types: HashMap<&str, &DataType> =
        schema.fields().iter().map(|f| (f.name().as_str(), f.data_type())).collect();
    for (name, value) in rows.iter().flatten() {
        if let Some(data_type) = types.get(name.as_str()) {
            check_exact(value, data_type)
                .map_err(|e| ArrowError::JsonError(format!("{name}: {e}")))?;
        }
    }
    let mut decoder = ReaderBuilder::new(schema.clone())
        .with_batch_size(rows.len().max(1))
        .with_strict_mode(true)
        .build_decoder()?;
    decoder.serialize(rows)?;
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// Refuses numbers that the type would change.
fn check_exact(value: &Value, data_type: &DataType) -> Result<(), String> {
    match (value, data_type) {
        (Value::Number(number), kind) if kind.is_integer() => check_whole(number),
        (Value::Number(number), DataType::Float32 | DataType::Float64) => check_float(number),
        (Value::Array(items), DataType::List(f) | DataType::LargeList(f)) => {
            items.iter().try_for_each(|item| check_exact(item, f.data_type()))
        }
        (Value::Object(object), DataType::Struct(fields)) => fields
            .iter()
            .filter_map(|field| Some((object.get(field.name())?, field)))
            .try_for_each(|(value, field)| check_exact(value, field.data_type())),
        _ => Ok(()),
    }
}

fn check_whole(number: &Number) -> Result<(), String> {
    match number.as_f64() {
        Some(value) if number.is_f64() && value.fract() != 0.0 => {
            Err(format!("{number} is no whole number, as those of the first rows are"))
        }
        _ => Ok(()),
    }
}

fn check_float(number: &Number) -> Result<(), String> {
    let size = number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs));
    match size {
        Some(size) if size > MOST_EXACT && (size as f64) as u128 != u128::from(size) => {
            Err(format!("{number} is no float64: it has too many digits"))
        }
        _ => Ok(()),
    }
}

/// The columns of `rows`, in the order in which their names first appear.
pub(super) fn infer_schema(rows: &[Row]) -> Result<Schema, ArrowError> {
    let objects = rows.iter().map(|row| Ok(Value::Object(row.clone())));
    let inferred = infer_json_schema_from_iterator(objects)?;
    let by_name: HashMap<&str, &FieldRef> =
        inferred.fields().iter().map(|field| (field.name().as_str(), field)).collect();
    let columns = columns(rows);
    let fields = columns.iter().filter_map(|column| {
        let field = by_name.get(column.name)?;
        // Arrow takes ids above those of int64 for floats.
        Some(match column.has_large && column.is_whole {
            true => Arc::new(field.as_ref().clone().with_data_type(DataType::UInt64)),
            false => Arc::clone(field),
        })
    });
    Ok(Schema::new(fields.collect::<Vec<FieldRef>>()))
}

/// The number of columns that rows have together.
pub(super) fn count_columns(rows: &[Row]) -> usize {
    columns(rows).len()
}

/// What is known of a column before its type is.
struct Column<'a> {
    name: &'a str,
    /// Whether a number in it is above those of int64.
    has_large: bool,
    /// Whether it has whole numbers from 0 on and nothing else.
    is_whole: bool,
}

/// The columns of rows, in one pass: rows can have other columns each.
fn columns(rows: &[Row]) -> Vec<Column<'_>> {
    let mut columns: Vec<Column<'_>> = Vec::new();
    let mut places = HashMap::new();
    for (name, value) in rows.iter().flatten() {
        let place = *places.entry(name.as_str()).or_insert_with(|| {
            columns.push(Column { name, has_large: false, is_whole: true });
            columns.len() - 1
        });
        columns[place].has_large |= value.is_u64() && !value.is_i64();
        columns[place].is_whole &= value.is_null() || value.is_u64();
    }
    columns
}

/// The inferred columns, of a type that holds what `map` returns: whole numbers and floats of 64 bits,
/// whatever the width was before, and text and lists as they were stored.
pub(super) fn keep_types(inferred: Schema, input: &SchemaRef) -> Schema {
    let before: HashMap<&str, &FieldRef> =
        input.fields().iter().map(|field| (field.name().as_str(), field)).collect();
    let keep = |field: &FieldRef| match before.get(field.name().as_str()) {
        Some(&before) => Arc::new(
            before
                .as_ref()
                .clone()
                .with_data_type(kept(field.data_type(), before.data_type()).into_owned()),
        ),
        _ => field.clone(),
    };
    Schema::new(inferred.fields().iter().map(keep).collect::<Vec<FieldRef>>())
}

/// The type of values that were inferred as `inferred`, and were stored as `before`.
fn kept<'a>(inferred: &'a DataType, before: &'a DataType) -> Cow<'a, DataType> {
    let item = |f: &FieldRef, g: &FieldRef| {
        let kind = kept(f.data_type(), g.data_type()).into_owned();
        Arc::new(g.as_ref().clone().with_data_type(kind).with_nullable(true))
    };
    match (inferred, before) {
        (DataType::Null, _) => Cow::Borrowed(before),
        (DataType::List(f), DataType::List(g)) => Cow::Owned(DataType::List(item(f, g))),
        (DataType::List(f), DataType::LargeList(g)) => Cow::Owned(DataType::LargeList(item(f, g))),
        (kind, before) if kind.is_integer() && before.is_floating() => {
            Cow::Owned(DataType::Float64)
        }
        (kind, DataType::UInt64) if kind.is_integer() => Cow::Borrowed(before),
        (DataType::Utf8, DataType::LargeUtf8 | DataType::Utf8View) => Cow::Borrowed(before),
        _ => Cow::Borrowed(inferred),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_without_keys_take_no_endless_memory() {
        let wide: Row = (0..3000).map(|i| (format!("k{i}"), json!(1))).collect();
        let row = |value: Value| Row::from_iter([("a".to_owned(), value)]);
        let rows = [row(json!([wide])), row(vec![json!({}); 50_000].into())];
        let schema = Arc::new(infer_schema(&rows).unwrap());
        assert_eq!(from_rows(&schema, &rows[..1]).unwrap().num_rows(), 1);
        let e = from_rows(&schema, &rows).unwrap_err();
        assert!(e.to_string().contains("take more than 134217728 places"), "{e}");
    }
}
