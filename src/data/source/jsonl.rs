//! JSON Lines: one object to a line; blank lines are no rows. A file that begins with `[` is an array
//! of objects instead, of which one is read after another.
//!
//! The columns are inferred from the first lines of the dataset's first file, and every later line
//! must fit them. Lines are parsed one by one, so that an error names its line.

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
};
use serde_json::Value;

use super::{array::ArrayItems, bytes::FileBytes};
use crate::{
    data::{
        stage::{BYTES_PER_BATCH, Batches, ROWS_PER_BATCH},
        values::{Row, from_rows, infer_schema},
    },
    error::{Error, Result},
};

pub(super) fn schema(file: &FileBytes) -> Result<Schema> {
    let mut lines = Objects { lines: records(file)?, file: file.clone() };
    let (_, rows) = lines.take_rows()?;
    if rows.is_empty() {
        return Err(file.error("there are no rows in it"));
    }
    let schema = infer_schema(&rows).map_err(|e| file.error(e))?;
    if schema.fields().is_empty() {
        return Err(file.error("its rows have no columns"));
    }
    Ok(schema)
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    records(file)?.try_fold(0, |rows, line| Ok(rows + u64::from(!is_blank(&line?.1))))
}

pub(super) fn read(file: &FileBytes, from: u64, schema: &SchemaRef) -> Result<Batches> {
    let mut objects = Objects { lines: records(file)?, file: file.clone() };
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
    lines: Records,
    file: FileBytes,
}

/// The texts of the objects, with the lines on which they begin.
type Records = Box<dyn Iterator<Item = Result<(u64, Vec<u8>)>>>;

/// Lines, or the elements of an array.
fn records(file: &FileBytes) -> Result<Records> {
    let mut stream = file.stream()?;
    let start = stream.fill_buf().map_err(|e| file.error(format!("cannot be read: {e}")))?;
    Ok(match start.trim_ascii_start().first() {
        Some(b'[') => Box::new(ArrayItems::new(stream, file.clone())),
        _ => Box::new(file.lines()?),
    })
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

fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii().is_empty()
}
