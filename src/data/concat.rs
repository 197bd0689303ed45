//! `concat`: the rows of several datasets, one after another.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::{
    parts::Parts,
    stage::{Batches, Stage, identity_of},
};
use crate::error::Result;

/// Datasets with the same columns, in turn.
pub(super) struct Concat {
    parts: Parts,
}

impl Concat {
    /// Joins datasets.
    ///
    /// # Errors
    /// They do not go together.
    pub(super) fn new(parts: Vec<Arc<dyn Stage>>) -> Result<Self> {
        Ok(Self { parts: Parts::new("concat", parts)? })
    }
}

impl Stage for Concat {
    fn inputs(&self) -> Vec<&dyn Stage> {
        self.parts.iter().map(|part| &**part).collect()
    }

    fn schema(&self) -> SchemaRef {
        self.parts.schema()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        self.parts.iter().try_fold(Some(0), |sum, part| {
            Ok(sum.zip(part.num_rows()?).map(|(sum, rows)| sum + rows))
        })
    }

    fn count(&self) -> Result<u64> {
        self.parts.iter().try_fold(0, |rows, part| Ok(rows + part.count()?))
    }

    fn is_spooled(&self) -> bool {
        self.parts.iter().all(|part| part.is_spooled())
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let (mut first, mut skip) = (0, from);
        while skip > 0 && first + 1 < self.parts.len() {
            let rows = self.parts.count(first)?;
            if rows > skip {
                break;
            }
            skip -= rows;
            first += 1;
        }
        let parts = self.parts.clone();
        let read = move |i: usize| -> Batches {
            let from = if i == first { skip } else { 0 };
            parts.read(i, epoch, from).unwrap_or_else(|e| Box::new(std::iter::once(Err(e))))
        };
        Ok(Box::new((first..self.parts.len()).flat_map(read)))
    }

    fn identity(&self) -> Result<Option<String>> {
        identity_of(&self.inputs(), "concat")
    }

    fn describe(&self) -> String {
        format!("({})", self.parts.describe(" + "))
    }
}
