//! `concat`: the rows of several datasets, one after another.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::{
    parts::Parts,
    stage::{Batches, Stage, identity_of, in_turn, place_of},
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
        let (parts, len) = (self.parts.clone(), self.parts.len());
        let place = place_of(from, len, |part| parts.count(part))?;
        Ok(in_turn(place, len, move |part, from| parts.read(part, epoch, from)))
    }

    fn identity(&self) -> Result<Option<String>> {
        identity_of(&self.inputs(), "concat")
    }

    fn describe(&self) -> String {
        format!("({})", self.parts.describe(" + "))
    }
}
