//! JSON Lines: one object to a line; blank lines are no rows.
//!
//! The columns are inferred from the first lines of the dataset's first file, and every later line
//! must fit them. Lines are parsed one by one, so that an error names its line.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use serde_json::Value;

use super::bytes::{FileBytes, Lines};
use crate::{
    data::{
        rows::{Row, from_rows, infer_schema},
        stage::{BYTES_PER_BATCH, Batches, ROWS_PER_BATCH},
    },
    error::{Error, Result},
};

pub(super) fn schema(file: &FileBytes) -> Result<Schema> {
    let mut lines = Objects { lines: file.lines()?, file: file.clone() };
    let (_, rows) = lines.take_rows()?;
    if rows.is_empty() {
        return Err(file.error("there are no rows in it"));
    }
    let schema = infer_schema(&rows).map_err(|e| file.error(e))?;
    if schema.fields().is_empty() {
        return Err(file.error("its rows have no columns"));
    }
    Ok(nulls_are_text(&schema))
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    file.lines()?.try_fold(0, |rows, line| Ok(rows + u64::from(!is_blank(&line?.1))))
}

pub(super) fn read(file: &FileBytes, from: u64, schema: &SchemaRef) -> Result<Batches> {
    let mut objects = Objects { lines: file.lines()?, file: file.clone() };
    objects.skip_rows(from)?;
    let schema = schema.clone();
    Ok(Box::new(std::iter::from_fn(move || match objects.take_rows() {
        Ok((_, rows)) if rows.is_empty() => None,
        Ok((numbers, rows)) => Some(to_batch(&schema, &numbers, &rows, &objects.file)),
        Err(e) => Some(Err(e)),
    })))
}

/// The objects of a file, line by line.
struct Objects {
    lines: Lines,
    file: FileBytes,
}

impl Objects {
    fn skip_rows(&mut self, n: u64) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let Some(line) = self.lines.next() else { break };
            left -= u64::from(!is_blank(&line?.1));
        }
        Ok(())
    }

    /// The next rows with their line numbers; empty at the end.
    fn take_rows(&mut self) -> Result<(Vec<u64>, Vec<Row>)> {
        let (mut numbers, mut rows) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        while rows.len() < ROWS_PER_BATCH && bytes < BYTES_PER_BATCH {
            let Some(line) = self.lines.next() else { break };
            let (number, line) = line?;
            bytes += line.len();
            if is_blank(&line) {
                continue;
            }
            rows.push(self.parse(number, &line)?);
            numbers.push(number);
        }
        Ok((numbers, rows))
    }

    fn parse(&self, number: u64, line: &[u8]) -> Result<Row> {
        let value = serde_json::from_slice(line).map_err(|e| {
            let e = self.file.error(format!("line {number} is not JSON: {}", reason(&e)));
            match line.trim_ascii() {
                b"[" | b"{" => e.hint("each line must hold one whole JSON object (JSON Lines)"),
                _ => e,
            }
        })?;
        match value {
            Value::Object(row) => Ok(row),
            _ => Err(self
                .file
                .error(format!("line {number} is not a JSON object"))
                .hint("each line must hold one whole JSON object (JSON Lines)")),
        }
    }
}

/// The parser's reason with the column; its own line number is always 1.
fn reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} at column {}", e.column())
}

fn to_batch(
    schema: &SchemaRef,
    numbers: &[u64],
    rows: &[Row],
    file: &FileBytes,
) -> Result<RecordBatch> {
    from_rows(schema, rows).map_err(|e| {
        let alone = |row: &Row| from_rows(schema, std::slice::from_ref(row)).err();
        let found = rows.iter().zip(numbers).find_map(|(row, n)| Some((*n, alone(row)?)));
        let (number, e) = found.unwrap_or((numbers[0], e));
        misfit(file, number, e)
    })
}

fn misfit(file: &FileBytes, number: u64, e: ArrowError) -> Error {
    file.error(format!("line {number} does not fit the columns of the first lines: {e}"))
}

/// A column that was null in all rows seen so far is taken for text, so that it has a type.
fn nulls_are_text(schema: &Schema) -> Schema {
    let field = |f: &Arc<Field>| match f.data_type() {
        DataType::Null => Arc::new(f.as_ref().clone().with_data_type(DataType::Utf8)),
        _ => f.clone(),
    };
    Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>())
}

fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}
