//! CSV and TSV with a header line. A column has the type that all values of the first rows are written
//! as: whole numbers, floats, booleans, else text, dates included. Every later row must fit it.
//!
//! Each value is read as text first, so that none is taken for another: `007` is no 7.

use std::{
    collections::HashMap,
    fmt::{self, Display, Formatter},
    str::Utf8Error,
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringBuilder},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
};
use memchr::memchr_iter;

use super::{
    bytes::FileBytes,
    csv_records::{Group, Groups},
    csv_values::Values,
    parallel::parsed,
};
use crate::{
    data::stage::{BYTES_PER_BATCH, Batches, ROWS_PER_BATCH},
    error::Result,
};

/// The groups that each core is given at a time.
const GROUPS_PER_CORE: usize = 4;

pub(super) fn schema(file: &FileBytes, delimiter: u8) -> Result<Schema> {
    let mut table = Table::of(file, delimiter)?;
    let Some(first) = table.groups.take(ROWS_PER_BATCH, BYTES_PER_BATCH)? else {
        return Err(file.error("there are no rows in it"));
    };
    let first = table.header.texts(&first)?;
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
    let mut groups = Table::of(file, delimiter)?.groups;
    let mut rows = 0;
    while let Some(group) = groups.take(ROWS_PER_BATCH, BYTES_PER_BATCH)? {
        rows += group.records as u64;
    }
    Ok(rows)
}

/// The rows from `from` on; all cores parse some batches at a time. `schema` is the dataset's, whose
/// columns this file may have in another order.
pub(super) fn read(
    file: &FileBytes,
    from: u64,
    schema: &SchemaRef,
    delimiter: u8,
) -> Result<Batches> {
    let Table { header, mut groups } = Table::of(file, delimiter)?;
    groups.skip(from)?;
    let schema = schema.clone();
    // The header is a record, too.
    let parse = move |group: &Group| {
        to_schema(&header.texts(group)?, &schema).map_err(|(at, what)| {
            let row = group.first - 1 + at;
            header.file.error(format!("row {row} does not fit the columns: {what}"))
        })
    };
    let at_once = GROUPS_PER_CORE * rayon::current_num_threads();
    Ok(parsed(at_once, move || groups.take_some(), parse))
}

/// A file whose header has been read.
struct Table {
    header: Header,
    groups: Groups,
}

/// The names and the delimiter by which the rows of a file are parsed.
struct Header {
    file: FileBytes,
    delimiter: u8,
    names: Vec<String>,
}

impl Table {
    fn of(file: &FileBytes, delimiter: u8) -> Result<Self> {
        let mut groups = Groups::of(file, delimiter)?;
        let Some(first) = groups.take(1, 1)? else {
            return Err(file.error("there is no header in it"));
        };
        let mut names: Vec<String> = Vec::new();
        let mut values = Values::of(&first.bytes, delimiter);
        values.next_record();
        loop {
            let value = values.next_value();
            let name = std::str::from_utf8(&value.bytes)
                .map_err(|e| file.error(format!("its header is not UTF-8: {e}")))?;
            if names.iter().any(|other| other == name) {
                return Err(file.error(format!("two of its columns are called \"{name}\"")));
            }
            names.push(name.to_owned());
            file.check_columns(names.len())?;
            if value.is_last {
                break;
            }
        }
        Ok(Self { header: Header { file: file.clone(), delimiter, names }, groups })
    }
}

impl Header {
    /// All values as text; an empty one is null.
    fn texts(&self, group: &Group) -> Result<RecordBatch> {
        let of_group = |bytes: usize| StringBuilder::with_capacity(group.records, bytes);
        let each = group.bytes.len() / self.names.len().max(1);
        let mut columns: Vec<_> = self.names.iter().map(|_| of_group(each)).collect();
        let mut values = Values::of(&group.bytes, self.delimiter);
        while let Some(start) = values.next_record() {
            self.record(&mut values, &mut columns).map_err(|what| {
                let line = group.line + memchr_iter(b'\n', &group.bytes[..start]).count() as u64;
                self.file.error(format!("line {line}: {what}")).hint_if(what.hint())
            })?;
        }
        let fields: Vec<_> =
            self.names.iter().map(|name| Field::new(name, DataType::Utf8, true)).collect();
        let columns = columns.iter_mut().map(|column| Arc::new(column.finish()) as ArrayRef);
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())
            .map_err(|e| self.file.error(e))
    }

    /// Appends the values of a record to the columns.
    fn record(
        &self,
        values: &mut Values<'_>,
        columns: &mut [StringBuilder],
    ) -> Result<(), WrongRecord> {
        let names = columns.len();
        let mut found = 0;
        loop {
            let value = values.next_value();
            if let Some(column) = columns.get_mut(found) {
                match std::str::from_utf8(&value.bytes) {
                    Ok("") => column.append_null(),
                    Ok(text) => column.append_value(text),
                    Err(e) => return Err(WrongRecord::Text(self.names[found].clone(), e)),
                }
            }
            found += 1;
            match value.is_last {
                true if found == names => return Ok(()),
                true => return Err(WrongRecord::Number { found, names }),
                false => {}
            }
        }
    }
}

/// A fault of a record.
enum WrongRecord {
    Text(String, Utf8Error),
    Number { found: usize, names: usize },
}

impl Display for WrongRecord {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(name, e) => write!(f, "{name} is not UTF-8: {e}"),
            Self::Number { found, names } => {
                write!(f, "{found} values, where the header has {names} names")
            }
        }
    }
}

impl WrongRecord {
    fn hint(&self) -> Option<&'static str> {
        let is_number = matches!(self, Self::Number { .. });
        is_number.then_some("a value with a delimiter or line break in it stands in quotes")
    }
}

/// The columns in the types of the dataset; the first row that does not fit, with the reason.
fn to_schema(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, (u64, String)> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    let kinds: HashMap<&str, &DataType> =
        schema.fields().iter().map(|field| (field.name().as_str(), field.data_type())).collect();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let kind = kinds.get(field.name().as_str()).copied().unwrap_or(&DataType::Utf8);
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
