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

use super::{array::ArrayItems, bytes::FileBytes, parallel::parsed};
use crate::{
    data::{
        stage::{BYTES_PER_BATCH, Batches, ROWS_PER_BATCH},
        values::{Row, count_columns, from_rows, infer_schema},
    },
    error::{Error, Result},
};

/// Values of a batch: with few columns it has as many rows as any other.
const VALUES_PER_BATCH: usize = ROWS_PER_BATCH << 10;
/// Values from which the columns are inferred.
const MOST_SEEN: usize = 4 * VALUES_PER_BATCH;

pub(super) fn schema(file: &FileBytes) -> Result<Schema> {
    let lines = Objects::of(file)?.take(ROWS_PER_BATCH, BYTES_PER_BATCH)?;
    let mut rows = Vec::new();
    let mut values = 0;
    for (number, line) in &lines {
        let row = parse(file, *number, line)?;
        values += row.len();
        rows.push(row);
        if values > MOST_SEEN {
            break;
        }
    }
    if rows.is_empty() {
        return Err(file.error("there are no rows in it"));
    }
    file.check_columns(count_columns(&rows))?;
    let schema = infer_schema(&rows).map_err(|e| file.error(e))?;
    if schema.fields().is_empty() {
        return Err(file.error("its rows have no columns"));
    }
    Ok(schema)
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    records(file)?.try_fold(0, |rows, line| Ok(rows + u64::from(!is_blank(&line?.1))))
}

/// The rows from `from` on; all cores parse some batches at a time.
pub(super) fn read(file: &FileBytes, from: u64, schema: &SchemaRef) -> Result<Batches> {
    let mut objects = Objects::of(file)?;
    objects.skip_rows(from)?;
    let (file, schema) = (file.clone(), schema.clone());
    let cores = rayon::current_num_threads();
    let columns = schema.flattened_fields().len().max(1);
    let rows = (VALUES_PER_BATCH / columns).clamp(1, ROWS_PER_BATCH);
    let take = move || {
        let lines = objects.take(rows, BYTES_PER_BATCH / cores)?;
        Ok((!lines.is_empty()).then_some(lines))
    };
    Ok(parsed(cores, take, move |lines: &Vec<Record>| to_batch(&schema, lines, &file)))
}

/// The text of an object, with the line on which it begins.
type Record = (u64, Vec<u8>);

type Records = Box<dyn Iterator<Item = Result<Record>>>;

/// Lines, or the elements of an array.
fn records(file: &FileBytes) -> Result<Records> {
    let mut stream = file.stream()?;
    let start = stream.fill_buf().map_err(|e| file.error(format!("cannot be read: {e}")))?;
    Ok(match start.trim_ascii_start().first() {
        Some(b'[') => Box::new(ArrayItems::new(stream, file.clone())),
        _ => Box::new(file.lines()?),
    })
}

/// The objects of a file, one after another.
struct Objects(Records);

impl Objects {
    fn of(file: &FileBytes) -> Result<Self> {
        Ok(Self(records(file)?))
    }

    fn skip_rows(&mut self, n: u64) -> Result<()> {
        let mut left = n;
        while left > 0 {
            let Some(line) = self.0.next() else { break };
            left -= u64::from(!is_blank(&line?.1));
        }
        Ok(())
    }

    /// The texts of the next `rows` rows, of `most` bytes or a little more; none at the end.
    fn take(&mut self, rows: usize, most: usize) -> Result<Vec<Record>> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < rows && bytes < most {
            let Some(line) = self.0.next() else { break };
            let (number, line) = line?;
            bytes += line.len();
            if !is_blank(&line) {
                lines.push((number, line));
            }
        }
        Ok(lines)
    }
}

/// The line numbers and the rows.
fn parse_all(file: &FileBytes, lines: &[Record]) -> Result<(Vec<u64>, Vec<Row>)> {
    let row = |(number, line): &Record| Ok((*number, parse(file, *number, line)?));
    lines.iter().map(row).collect()
}

fn parse(file: &FileBytes, number: u64, line: &[u8]) -> Result<Row> {
    const HINT: &str = "each line must hold one whole JSON object (JSON Lines)";
    let value = serde_json::from_slice(line).map_err(|e| {
        let e = file.error(format!("line {number} is not JSON: {}", reason(&e)));
        match line.trim_ascii() {
            b"[" | b"{" => e.hint(HINT),
            _ => e,
        }
    })?;
    match value {
        Value::Object(row) => file.check_columns(row.len()).map(|()| row),
        _ => Err(file.error(format!("line {number} is not a JSON object")).hint(HINT)),
    }
}

/// The parser's reason with the column; its own line number is always 1.
fn reason(e: &serde_json::Error) -> String {
    let text = e.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    format!("{what} at column {}", e.column())
}

fn to_batch(schema: &SchemaRef, lines: &[Record], file: &FileBytes) -> Result<RecordBatch> {
    let (numbers, rows) = parse_all(file, lines)?;
    from_rows(schema, &rows).map_err(|e| {
        let alone = |row: &Row| from_rows(schema, std::slice::from_ref(row)).err();
        let found = rows.iter().zip(&numbers).find_map(|(row, n)| Some((*n, alone(row)?)));
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
