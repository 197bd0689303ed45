//! The columns that the files of a dataset have in common, and each file's batches with them.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::RecordBatch,
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
};

use super::file::DataFile;
use crate::{
    data::stage::{is_bytes, is_text},
    error::{Code, Error, Result},
};

/// The columns that hold the values of all `files` as they are.
///
/// # Errors
/// A file that has other columns than the first, or of a type that does not go together with its.
pub(super) fn common(files: &[&DataFile]) -> Result<SchemaRef> {
    let mut all: Option<Fields> = None;
    for file in files {
        let schema = file.schema()?;
        let fields: Fields = schema.fields().iter().map(normalize).collect();
        all = Some(match all {
            None => fields,
            Some(known) => {
                let joined = join_fields(&known, &fields, file.may_lack_columns());
                joined.ok_or_else(|| other_columns(&fields, &known, file.name()))?
            }
        });
    }
    let fields: Fields = all.unwrap_or_default().iter().map(nulls_are_text).collect();
    Ok(Arc::new(Schema::new(fields)))
}

/// A column as all stages see it: nullable, and without dictionary encoding.
fn normalize(field: &FieldRef) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Dictionary(_, values) => values.as_ref().clone(),
        other => other.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(data_type).with_nullable(true))
}

/// A column that was null in all rows seen is taken for text, so that it has a type.
fn nulls_are_text(field: &FieldRef) -> FieldRef {
    match field.data_type() {
        DataType::Null => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => field.clone(),
    }
}

/// The columns of both; `None` where they do not go together. Where a column `may_lack`, a row without
/// it has a null.
fn join_fields(a: &Fields, b: &Fields, may_lack: bool) -> Option<Fields> {
    if !may_lack && a.len() != b.len() {
        return None;
    }
    let (in_a, in_b) = (by_name(a), by_name(b));
    let mut joined = Vec::new();
    for field in a {
        joined.push(match in_b.get(field.name().as_str()) {
            Some(other) => join_field(field, other, may_lack)?,
            None if may_lack => field.clone(),
            None => return None,
        });
    }
    let new = b.iter().filter(|field| !in_a.contains_key(field.name().as_str()));
    joined.extend(new.cloned());
    Some(joined.into())
}

/// The fields by their names, of which the first counts.
fn by_name(fields: &Fields) -> HashMap<&str, &FieldRef> {
    fields.iter().rev().map(|field| (field.name().as_str(), field)).collect()
}

fn join_field(a: &FieldRef, b: &FieldRef, may_lack: bool) -> Option<FieldRef> {
    let kind = join_types(a.data_type(), b.data_type(), may_lack)?;
    let nullable = a.is_nullable() || b.is_nullable();
    Some(Arc::new(a.as_ref().clone().with_data_type(kind).with_nullable(nullable)))
}

/// The type that holds every value of both.
fn join_types(a: &DataType, b: &DataType, may_lack: bool) -> Option<DataType> {
    let signed = |kind: &DataType| kind.is_signed_integer();
    Some(match (a, b) {
        (a, b) if a == b => a.clone(),
        (DataType::Null, other) | (other, DataType::Null) => other.clone(),
        (a, b) if is_text(a) && is_text(b) => DataType::LargeUtf8,
        (a, b) if is_bytes(a) && is_bytes(b) => DataType::LargeBinary,
        (a, b) if a.is_integer() && b.is_integer() => match (a, b) {
            (a, b) if !signed(a) && !signed(b) => DataType::UInt64,
            (DataType::UInt64, _) | (_, DataType::UInt64) => return None,
            _ => DataType::Int64,
        },
        // What is no float64 exactly is refused when its row is read.
        (a, b) if a.is_numeric() && b.is_numeric() && (a.is_floating() || b.is_floating()) => {
            DataType::Float64
        }
        (DataType::List(a), DataType::List(b)) => DataType::List(join_field(a, b, may_lack)?),
        (
            DataType::List(a) | DataType::LargeList(a),
            DataType::List(b) | DataType::LargeList(b),
        ) => DataType::LargeList(join_field(a, b, may_lack)?),
        (DataType::Struct(a), DataType::Struct(b)) => {
            DataType::Struct(join_fields(a, b, may_lack)?)
        }
        (a, b) if a.equals_datatype(b) => a.clone(),
        _ => return None,
    })
}

/// A file's batch with exactly the columns of the dataset.
pub(super) fn conform(batch: &RecordBatch, schema: &SchemaRef, file: &str) -> Result<RecordBatch> {
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let found = batch.schema();
    // Most files have their columns in the same order.
    let column_of = |at: usize, field: &FieldRef| match found.fields().get(at) {
        Some(same) if same.name() == field.name() => Some(batch.column(at)),
        _ => batch.column_by_name(field.name()),
    };
    let column = |(at, field): (usize, &FieldRef)| {
        let column = column_of(at, field)
            .ok_or_else(|| other_columns(batch.schema().fields(), schema.fields(), file))?;
        let wrong = |e: &dyn std::fmt::Display| {
            Error::new(Code::Data, format!("{file}: column \"{}\": {e}", field.name()))
        };
        if column.data_type() == field.data_type() {
            return Ok(column.clone());
        }
        let there = cast_with_options(column, field.data_type(), &strict).map_err(|e| wrong(&e))?;
        // A whole number that is no float64 would come back as another.
        if column.data_type().is_integer() && field.data_type().is_floating() {
            let back = cast_with_options(&there, column.data_type(), &strict);
            if back.map_err(|e| wrong(&e))?.as_ref() != column.as_ref() {
                return Err(wrong(&"a number has too many digits for float64"));
            }
        }
        Ok(there)
    };
    let columns = schema.fields().iter().enumerate().map(column).collect::<Result<Vec<_>>>()?;
    RecordBatch::try_new(schema.clone(), columns)
        .map_err(|e| Error::new(Code::Data, format!("{file}: {e}")).caused_by(e))
}

fn other_columns(found: &Fields, expected: &Fields, file: &str) -> Error {
    let list = |fields: &Fields| {
        let column = |f: &FieldRef| format!("{}: {}", f.name(), f.data_type());
        fields.iter().map(column).collect::<Vec<_>>().join(", ")
    };
    Error::new(
        Code::Data,
        format!(
            "{file} has other columns than the first file of the dataset: expected {}; found {}",
            list(expected),
            list(found)
        ),
    )
}
