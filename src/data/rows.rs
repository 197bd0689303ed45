//! Rows as JSON objects, the form in which recipes see a dataset: in `filter`, in `map` and printed.
//!
//! JSON is where Arrow's types and a script's values meet (`values.rs`). The way back needs a schema: it
//! is inferred from the first rows that `map` returns. Later rows must fit; nothing is dropped or bent
//! silently.
//!
//! The functions of `filter` and `map` run in the thread that made them alone: a recipe has one. Their
//! stages are therefore [local](Stage::is_local).

use std::{rc::Rc, sync::Arc};

use arrow::{
    array::BooleanArray, compute::filter_record_batch, datatypes::SchemaRef, error::ArrowError,
};
use send_wrapper::SendWrapper;

use super::{
    stage::{Batches, Stage, skip_rows},
    values::{Row, from_rows, infer_schema, keep_types, to_rows},
};
use crate::error::{Code, Error, Result};

/// Says whether a row stays.
pub type RowPredicate = Rc<dyn Fn(&Row) -> Result<bool>>;
/// Makes a new row of a row.
pub type RowMap = Rc<dyn Fn(Row) -> Result<Row>>;

/// The rows of a dataset, one after another.
pub struct Rows {
    batches: Batches,
    /// The number of the row after those in `ready`.
    next: u64,
    ready: std::vec::IntoIter<Row>,
}

impl Rows {
    pub(super) fn new(batches: Batches) -> Self {
        Self { batches, next: 0, ready: Vec::new().into_iter() }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.ready.next() {
                return Some(Ok(row));
            }
            match self.batches.next()?.and_then(|batch| to_rows(&batch, self.next)) {
                Ok(rows) => {
                    self.next += rows.len() as u64;
                    self.ready = rows.into_iter();
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
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
    fn inputs(&self) -> Vec<&dyn Stage> {
        vec![&*self.input]
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let keep = RowPredicate::clone(&self.keep);
        let mut first_row = 0;
        let kept = self.input.read(epoch, 0)?.map(move |batch| {
            let batch = batch?;
            let rows = to_rows(&batch, first_row)?;
            first_row += rows.len() as u64;
            let mask: BooleanArray =
                rows.iter().map(|row| keep(row).map(Some)).collect::<Result<_>>()?;
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
            rows = to_rows(&batch, 0)?.into_iter().map(|row| change(row)).collect::<Result<_>>()?;
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
    fn one_to_one(&self) -> Option<&dyn Stage> {
        Some(&*self.input)
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let (change, schema) = (RowMap::clone(&self.change), self.schema.clone());
        let mut first_row = from;
        Ok(Box::new(self.input.read(epoch, from)?.map(move |batch| {
            let rows: Vec<Row> = to_rows(&batch?, first_row)?
                .into_iter()
                .map(|row| change(row))
                .collect::<Result<_>>()?;
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
