//! Plain text: one row to a line, in the column `text`, as Hugging Face's text loader reads it;
//! empty lines are rows.

use std::sync::Arc;

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};

use super::bytes::FileBytes;
use crate::{
    data::stage::{BYTES_PER_BATCH, Batches, ROWS_PER_BATCH},
    error::Result,
};

pub(super) fn schema() -> Schema {
    Schema::new(vec![Field::new("text", DataType::Utf8, true)])
}

pub(super) fn num_rows(file: &FileBytes) -> Result<u64> {
    file.lines()?.try_fold(0, |rows, line| line.map(|_| rows + 1))
}

pub(super) fn read(file: &FileBytes, from: u64, schema: &SchemaRef) -> Result<Batches> {
    let mut lines = file.lines()?.skip(from as usize);
    let (file, schema) = (file.clone(), schema.clone());
    Ok(Box::new(std::iter::from_fn(move || {
        let mut bytes = 0;
        let texts: Result<Vec<String>> = std::iter::from_fn(|| {
            let line = if bytes < BYTES_PER_BATCH { lines.next() } else { None };
            bytes += line.as_ref().map_or(0, |line| line.as_ref().map_or(0, |(_, l)| l.len()));
            line
        })
        .take(ROWS_PER_BATCH)
        .map(|line| {
            let (number, line) = line?;
            String::from_utf8(line)
                .map_err(|_| file.error(format!("line {number} is not UTF-8 text")))
        })
        .collect();
        let texts = match texts {
            Ok(texts) if texts.is_empty() => return None,
            Ok(texts) => texts,
            Err(e) => return Some(Err(e)),
        };
        let column = Arc::new(StringArray::from(texts));
        Some(RecordBatch::try_new(schema.clone(), vec![column]).map_err(|e| file.error(e)))
    })))
}
