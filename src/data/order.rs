//! `sort` and `unique`: rows chosen and put in order by the values of a column. The rows are spooled to
//! disk once; of them only the column is held in memory.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{Array, ArrayRef, UInt64Array},
    compute::{SortColumn, SortOptions, concat, lexsort_to_indices},
    datatypes::SchemaRef,
    error::ArrowError,
    row::{RowConverter, SortField},
};

use super::{
    spool::{Spool, SpoolFile},
    stage::{Batches, Stage, no_column},
};
use crate::error::{Code, Error, Result};

/// The order of rows that a column's values make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// By the values; equal ones keep their order, nulls come last.
    Sorted { descending: bool },
    /// The first row of each value.
    Unique,
}

/// Rows in an order that is found at the first use.
pub(super) struct Ordered {
    spool: Spool,
    column: String,
    rule: Rule,
    order: OnceLock<Arc<[u64]>>,
}

impl Ordered {
    pub(super) fn new(input: Arc<dyn Stage>, column: &str, rule: Rule) -> Result<Self> {
        let schema = input.schema();
        let field = schema.field_with_name(column).map_err(|_| no_column(column, &schema))?;
        if rule != Rule::Unique && field.data_type().is_nested() {
            bail!(
                Code::Data,
                "sort: column \"{column}\" is {}, which has no order",
                field.data_type()
            );
        }
        let (spool, order) = (Spool::new(input), OnceLock::new());
        Ok(Self { spool, column: column.to_owned(), rule, order })
    }

    fn order(&self, file: &Arc<SpoolFile>) -> Result<Arc<[u64]>> {
        if let Some(order) = self.order.get() {
            return Ok(order.clone());
        }
        let mut parts: Vec<ArrayRef> = Vec::new();
        for batch in SpoolFile::read(file, 0..file.len()) {
            parts.extend(batch?.column_by_name(&self.column).cloned());
        }
        let found = match parts.is_empty() {
            true => Ok(Vec::new()),
            false => self.indices(&parts),
        };
        let order = found.map_err(|e| {
            let message = format!("column \"{}\" cannot be compared: {e}", self.column);
            Error::new(Code::Data, message).caused_by(e)
        })?;
        Ok(self.order.get_or_init(|| order.into()).clone())
    }

    fn indices(&self, parts: &[ArrayRef]) -> Result<Vec<u64>, ArrowError> {
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        let values = concat(&parts)?;
        let Rule::Sorted { descending } = self.rule else {
            let field = SortField::new(values.data_type().clone());
            let rows = RowConverter::new(vec![field])?.convert_columns(&[values])?;
            let mut seen = HashSet::new();
            let is_new = |(i, row): (usize, arrow::row::Row<'_>)| {
                seen.insert(row.as_ref().to_vec()).then_some(i as u64)
            };
            return Ok(rows.iter().enumerate().filter_map(is_new).collect());
        };
        let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(0..values.len() as u64));
        let options = Some(SortOptions { descending, nulls_first: false });
        let columns =
            [SortColumn { values, options }, SortColumn { values: numbers, options: None }];
        let indices = lexsort_to_indices(&columns, None)?;
        Ok(indices.values().iter().map(|&i| u64::from(i)).collect())
    }
}

impl Stage for Ordered {
    fn inputs(&self) -> Vec<&dyn Stage> {
        vec![&self.spool]
    }

    fn schema(&self) -> SchemaRef {
        self.spool.schema()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        match self.rule {
            Rule::Sorted { .. } => self.spool.num_rows(),
            Rule::Unique => Ok(self.order.get().map(|order| order.len() as u64)),
        }
    }

    fn is_spooled(&self) -> bool {
        true
    }

    fn read(&self, _epoch: u64, from: u64) -> Result<Batches> {
        let file = self.spool.file()?;
        let order = self.order(&file)?;
        let rest = (from as usize..order.len()).map(move |at| order[at]);
        Ok(SpoolFile::read(&file, rest))
    }

    fn describe(&self) -> String {
        let done = match self.rule {
            Rule::Sorted { descending: false } => format!("sort({})", self.column),
            Rule::Sorted { descending: true } => format!("sort({}, reverse)", self.column),
            Rule::Unique => format!("unique({})", self.column),
        };
        format!("{} -> {done}", self.spool.input().describe())
    }
}
