//! Rows as JSON objects, the form in which recipes see a dataset: in `filter`, in `map` and printed.
//!
//! JSON is where Arrow's types and a script's values meet. The way back needs a schema: it is
//! inferred from the first rows that `map` returns, and where a column existed before with a type
//! that still fits, that type is kept. Later rows must fit; nothing is dropped or bent silently.
//!
//! The functions of `filter` and `map` run in the thread that made them alone: a recipe has one. Their
//! stages are therefore [local](Stage::is_local).

use std::{rc::Rc, sync::Arc};

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef},
    error::ArrowError,
    json::{
        ReaderBuilder, WriterBuilder, reader::infer_json_schema_from_iterator,
        writer::LineDelimited,
    },
};
use send_wrapper::SendWrapper;
use serde_json::Value;

use super::stage::{Batches, Stage, skip_rows};
use crate::error::{Code, Error, Result};

/// One row: the columns' names and values.
pub type Row = serde_json::Map<String, Value>;
/// Says whether a row stays.
pub type RowPredicate = Rc<dyn Fn(&Row) -> Result<bool>>;
/// Makes a new row of a row.
pub type RowMap = Rc<dyn Fn(Row) -> Result<Row>>;

/// The rows of a dataset, one after another.
pub struct Rows {
    batches: Batches,
    ready: std::vec::IntoIter<Row>,
}

impl Rows {
    pub(super) fn new(batches: Batches) -> Self {
        Self { batches, ready: Vec::new().into_iter() }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.ready.next() {
                return Some(Ok(row));
            }
            match self.batches.next()?.and_then(|batch| to_rows(&batch)) {
                Ok(rows) => self.ready = rows.into_iter(),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// The rows of one batch; a null is `null`, never a missing key.
pub(super) fn to_rows(batch: &RecordBatch) -> Result<Vec<Row>> {
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

/// Rows as a batch with the columns of `schema`; a missing key is a null, another key an error.
pub(super) fn from_rows(schema: &SchemaRef, rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let mut decoder = ReaderBuilder::new(schema.clone())
        .with_batch_size(rows.len().max(1))
        .with_strict_mode(true)
        .build_decoder()?;
    decoder.serialize(rows)?;
    Ok(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema.clone())))
}

/// The columns of `rows`, in the order in which their names first appear.
pub(super) fn infer_schema(rows: &[Row]) -> Result<Schema, ArrowError> {
    let objects = rows.iter().map(|row| Ok(Value::Object(row.clone())));
    let inferred = infer_json_schema_from_iterator(objects)?;
    let mut fields: Vec<FieldRef> = Vec::new();
    for name in rows.iter().flat_map(Row::keys) {
        if !fields.iter().any(|f| f.name() == name)
            && let Some((_, field)) = inferred.fields().find(name)
        {
            fields.push(field.clone());
        }
    }
    Ok(Schema::new(fields))
}

/// The rows that a predicate lets through.
pub(super) struct Filter {
    input: Arc<dyn Stage>,
    keep: SendWrapper<RowPredicate>,
}

impl Filter {
    pub(super) fn new(input: Arc<dyn Stage>, keep: RowPredicate) -> Self {
        Self { input, keep: SendWrapper::new(keep) }
    }
}

impl Stage for Filter {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    fn is_local(&self) -> bool {
        true
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let keep = RowPredicate::clone(&self.keep);
        let kept = self.input.read(epoch, 0)?.map(move |batch| {
            let batch = batch?;
            let mask: BooleanArray =
                to_rows(&batch)?.iter().map(|row| keep(row).map(Some)).collect::<Result<_>>()?;
            filter_record_batch(&batch, &mask)
                .map_err(|e| Error::new(Code::Internal, format!("filter: {e}")).caused_by(e))
        });
        Ok(skip_rows(Box::new(kept), from))
    }

    fn describe(&self) -> String {
        format!("{} -> filter", self.input.describe())
    }
}

/// Every row replaced by another.
pub(super) struct Map {
    input: Arc<dyn Stage>,
    change: SendWrapper<RowMap>,
    schema: SchemaRef,
}

impl Map {
    pub(super) fn new(input: Arc<dyn Stage>, change: RowMap) -> Result<Self> {
        let mut first = input.read(0, 0)?;
        let mut rows = Vec::new();
        while rows.is_empty() {
            let Some(batch) = first.next().transpose()? else { break };
            rows = to_rows(&batch)?.into_iter().map(|row| change(row)).collect::<Result<_>>()?;
        }
        let schema = if rows.is_empty() {
            input.schema()
        } else {
            let inferred = infer_schema(&rows).map_err(|e| {
                Error::new(Code::Data, format!("map: the first rows make no columns: {e}"))
            })?;
            Arc::new(keep_types(inferred, &input.schema()))
        };
        if schema.fields().is_empty() {
            bail!(Code::Data, "map: the rows it returns have no columns");
        }
        Ok(Self { input, change: SendWrapper::new(change), schema })
    }
}

impl Stage for Map {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        self.input.num_rows()
    }

    fn count(&self) -> Result<u64> {
        self.input.count()
    }

    fn is_spooled(&self) -> bool {
        self.input.is_spooled()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let (change, schema) = (RowMap::clone(&self.change), self.schema.clone());
        let mut first_row = from;
        Ok(Box::new(self.input.read(epoch, from)?.map(move |batch| {
            let rows: Vec<Row> =
                to_rows(&batch?)?.into_iter().map(|row| change(row)).collect::<Result<_>>()?;
            let batch =
                from_rows(&schema, &rows).map_err(|e| misfit(&schema, &rows, first_row, &e))?;
            first_row += rows.len() as u64;
            Ok(batch)
        })))
    }

    fn describe(&self) -> String {
        format!("{} -> map", self.input.describe())
    }
}

/// Names the first row that does not fit the columns.
fn misfit(schema: &SchemaRef, rows: &[Row], first_row: u64, e: &ArrowError) -> Error {
    let alone = |row: &Row| from_rows(schema, std::slice::from_ref(row)).err();
    let found = rows.iter().enumerate().find_map(|(i, row)| Some((i, alone(row)?)));
    let (row, reason) = match &found {
        Some((i, reason)) => (first_row + *i as u64, reason),
        None => (first_row, e),
    };
    let columns: Vec<String> =
        schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
    Error::new(
        Code::Data,
        format!(
            "map: row {row} does not fit the columns of the first rows ({}): {reason}",
            columns.join(", ")
        ),
    )
    .hint("return the same keys with the same types for every row")
}

/// The inferred columns, with the type that they had before where it still fits.
fn keep_types(inferred: Schema, input: &SchemaRef) -> Schema {
    let keep = |field: &FieldRef| match input.field_with_name(field.name()) {
        Ok(before) if fits(field.data_type(), before.data_type()) => Arc::new(before.clone()),
        _ => field.clone(),
    };
    Schema::new(inferred.fields().iter().map(keep).collect::<Vec<FieldRef>>())
}

/// Whether values inferred as `inferred` can be stored as `before`.
fn fits(inferred: &DataType, before: &DataType) -> bool {
    let items = |f: &Field| f.data_type().clone();
    match (inferred, before) {
        (DataType::Null, _) => true,
        (DataType::List(a), DataType::List(b) | DataType::LargeList(b)) => {
            fits(&items(a), &items(b))
        }
        (a, b) if a.is_integer() => b.is_integer() || b.is_floating(),
        (a, b) if a.is_floating() => b.is_floating(),
        (DataType::Utf8, b) => {
            matches!(b, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        }
        (a, b) => a == b,
    }
}
