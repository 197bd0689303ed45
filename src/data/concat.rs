//! `concat`: the rows of several datasets, one after another.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::stage::{Batches, Stage};
use crate::error::{Code, Error, Result};

/// Datasets with the same columns, in turn.
pub(super) struct Concat {
    parts: Arc<[Arc<dyn Stage>]>,
}

impl Concat {
    /// Joins datasets.
    ///
    /// # Errors
    /// One has other columns than the first.
    pub(super) fn new(parts: Vec<Arc<dyn Stage>>) -> Result<Self> {
        let list = |schema: SchemaRef| {
            let all = schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type()));
            all.collect::<Vec<_>>().join(", ")
        };
        let expected = list(parts[0].schema());
        for part in &parts[1..] {
            let found = list(part.schema());
            if found != expected {
                let message = format!(
                    "concat: {} has other columns than the first dataset: expected {expected}; \
                     found {found}",
                    part.describe()
                );
                return Err(Error::new(Code::Data, message).hint(
                    "bring them to the same columns, with .select(...), .rename(...) or .map(...)",
                ));
            }
        }
        Ok(Self { parts: parts.into() })
    }
}

impl Stage for Concat {
    fn input(&self) -> Option<&dyn Stage> {
        None
    }

    fn schema(&self) -> SchemaRef {
        self.parts[0].schema()
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

    fn is_local(&self) -> bool {
        self.parts.iter().any(|part| part.is_local())
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let (mut first, mut skip) = (0, from);
        while skip > 0 && first + 1 < self.parts.len() {
            let rows = self.parts[first].count()?;
            if rows > skip {
                break;
            }
            skip -= rows;
            first += 1;
        }
        let (parts, schema) = (self.parts.clone(), self.schema());
        let read = move |i: usize| -> Batches {
            let from = if i == first { skip } else { 0 };
            let schema = schema.clone();
            match parts[i].read(epoch, from) {
                // Metadata of columns may differ, and the first dataset's holds.
                Ok(batches) => Box::new(batches.map(move |batch| {
                    batch?
                        .with_schema(schema.clone())
                        .map_err(|e| Error::new(Code::Data, format!("concat: {e}")).caused_by(e))
                })),
                Err(e) => Box::new(std::iter::once(Err(e))),
            }
        };
        Ok(Box::new((first..self.parts.len()).flat_map(read)))
    }

    fn origin(&self) -> Result<String> {
        let origins = self.parts.iter().map(|part| part.origin()).collect::<Result<Vec<_>>>()?;
        Ok(origins.join(" and "))
    }

    fn describe(&self) -> String {
        let parts: Vec<String> = self.parts.iter().map(|part| part.describe()).collect();
        format!("({})", parts.join(" + "))
    }
}
