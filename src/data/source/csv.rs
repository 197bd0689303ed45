//! CSV and TSV with a header line: the types of the columns are those of the first rows, as pandas and
//! Hugging Face take them, and every later row must fit them.

use std::sync::Arc;

use arrow::{
    csv::{ReaderBuilder, reader::Format},
    datatypes::{Schema, SchemaRef},
};

use super::bytes::FileBytes;
use crate::{
    data::stage::{Batches, ROWS_PER_BATCH, skip_rows},
    error::Result,
};

fn format(delimiter: u8) -> Format {
    Format::default().with_header(true).with_delimiter(delimiter)
}

pub(super) fn schema(file: &FileBytes, delimiter: u8) -> Result<Schema> {
    let (schema, rows) = format(delimiter)
        .infer_schema(file.stream()?, Some(ROWS_PER_BATCH))
        .map_err(|e| file.error(e))?;
    if rows == 0 {
        return Err(file.error("there are no rows in it"));
    }
    Ok(schema)
}

pub(super) fn num_rows(file: &FileBytes, delimiter: u8) -> Result<u64> {
    let schema = Arc::new(schema(file, delimiter)?);
    read(file, 0, &schema, delimiter)?
        .try_fold(0, |rows, batch| Ok(rows + batch?.num_rows() as u64))
}

/// The rows from `from` on. `schema` is the dataset's, whose columns this file may have in another order.
pub(super) fn read(
    file: &FileBytes,
    from: u64,
    schema: &SchemaRef,
    delimiter: u8,
) -> Result<Batches> {
    let (own, _) =
        format(delimiter).infer_schema(file.stream()?, Some(1)).map_err(|e| file.error(e))?;
    let typed = own.fields().iter().map(|field| {
        schema.field_with_name(field.name()).map_or_else(|_| field.clone(), |f| Arc::new(f.clone()))
    });
    let reader = ReaderBuilder::new(Arc::new(Schema::new(typed.collect::<Vec<_>>())))
        .with_format(format(delimiter))
        .with_batch_size(ROWS_PER_BATCH)
        .build_buffered(file.stream()?)
        .map_err(|e| file.error(e))?;
    let file = file.clone();
    Ok(skip_rows(Box::new(reader.map(move |batch| batch.map_err(|e| file.error(e)))), from))
}
