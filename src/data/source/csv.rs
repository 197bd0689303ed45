//! CSV and TSV with a header line. A column has the type that all values of the first rows are written
//! as: whole numbers, floats, booleans, else text, dates included. Every later row must fit it.
//!
//! Each value is read as text first, so that none is taken for another: `007` is no 7.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::{CastOptions, cast_with_options},
    csv::{ReaderBuilder, reader::Format},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};

use super::bytes::FileBytes;
use crate::{
    data::stage::{Batches, ROWS_PER_BATCH, skip_rows},
    error::Result,
};

pub(super) fn schema(file: &FileBytes, delimiter: u8) -> Result<Schema> {
    let mut batches = texts(file, delimiter)?;
    let Some(first) = batches.next().transpose()? else {
        return Err(file.error("there are no rows in it"));
    };
    let field = |(field, column): (&FieldRef, &ArrayRef)| {
        let kinds = [DataType::Int64, DataType::Float64, DataType::Boolean];
        let is_empty = column.null_count() == column.len();
        let fits = kinds.into_iter().find(|kind| !is_empty && typed(column, kind).is_ok());
        Field::new(field.name(), fits.unwrap_or(DataType::Utf8), true)
    };
    let schema = first.schema();
    Ok(Schema::new(schema.fields().iter().zip(first.columns()).map(field).collect::<Vec<_>>()))
}

pub(super) fn num_rows(file: &FileBytes, delimiter: u8) -> Result<u64> {
    texts(file, delimiter)?.try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64))
}

/// The rows from `from` on. `schema` is the dataset's, whose columns this file may have in another order.
pub(super) fn read(
    file: &FileBytes,
    from: u64,
    schema: &SchemaRef,
    delimiter: u8,
) -> Result<Batches> {
    let (schema, of_errors) = (schema.clone(), file.clone());
    let mut row = from;
    Ok(Box::new(skip_rows(texts(file, delimiter)?, from).map(move |batch| {
        let batch = batch?;
        let typed = to_schema(&batch, &schema).map_err(|(at, what)| {
            of_errors.error(format!("row {} does not fit the columns: {what}", row + at))
        });
        row += batch.num_rows() as u64;
        typed
    })))
}

/// All values as text; an empty one is null.
fn texts(file: &FileBytes, delimiter: u8) -> Result<Batches> {
    let format = || Format::default().with_header(true).with_delimiter(delimiter);
    let wrong = |e| file.error(e);
    let (header, _) = format().infer_schema(file.stream()?, Some(0)).map_err(wrong)?;
    let names: Vec<&String> = header.fields().iter().map(|field| field.name()).collect();
    if let Some(name) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(file.error(format!("two of its columns are called \"{}\"", name.1)));
    }
    let fields: Vec<_> = names.iter().map(|n| Field::new(*n, DataType::Utf8, true)).collect();
    let reader = ReaderBuilder::new(Arc::new(Schema::new(fields)))
        .with_format(format())
        .with_batch_size(ROWS_PER_BATCH)
        .build_buffered(file.stream()?)
        .map_err(wrong)?;
    let file = file.clone();
    Ok(Box::new(reader.map(move |batch| batch.map_err(|e| file.error(e)))))
}

/// The columns in the types of the dataset; the first row that does not fit, with the reason.
fn to_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, (u64, String)> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let kind = schema.field_with_name(field.name()).map_or(&DataType::Utf8, Field::data_type);
        columns.push(typed(column, kind).map_err(|at| {
            let value = column.as_string::<i32>().value(at);
            (at as u64, format!("{}: \"{value}\" is no {kind}", field.name()))
        })?);
        fields.push(field.as_ref().clone().with_data_type(kind.clone()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(|e| (0, e.to_string()))
}

/// Text as values of a type; the first row that is not written as one.
fn typed(column: &ArrayRef, kind: &DataType) -> Result<ArrayRef, usize> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let as_written = |text: &str| match kind {
        kind if kind.is_numeric() => is_number(text),
        DataType::Boolean => matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE"),
        _ => true,
    };
    let texts = column.as_string::<i32>();
    if let Some(at) = texts.iter().position(|text| text.is_some_and(|text| !as_written(text))) {
        return Err(at);
    }
    cast_with_options(column, kind, &strict).map_err(|_| {
        let alone = |row: &usize| cast_with_options(&column.slice(*row, 1), kind, &strict).is_err();
        (0..column.len()).find(alone).unwrap_or(0)
    })
}

/// Whether a text is a number that would be written so again, but for the digits of a float.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let mut bytes = digits.bytes();
    match (bytes.next(), bytes.next()) {
        (Some(b'0'), Some(second)) => !second.is_ascii_digit(),
        (Some(first), _) => first.is_ascii_digit() || first == b'.',
        (None, _) => false,
    }
}
