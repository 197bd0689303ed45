//! `take` and `skip`: a range of the input's rows. Epochs pass through, so that taking from a
//! shuffled dataset takes other rows in every epoch.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

use super::stage::{Batches, Stage, identity_of, limit_rows};
use crate::error::Result;

/// Rows `from..from + len` of the input.
pub(super) struct Window {
    input: Arc<dyn Stage>,
    from: u64,
    len: Option<u64>,
}

impl Window {
    pub(super) fn take(input: Arc<dyn Stage>, n: u64) -> Self {
        Self { input, from: 0, len: Some(n) }
    }

    pub(super) fn skip(input: Arc<dyn Stage>, n: u64) -> Self {
        Self { input, from: n, len: None }
    }

    fn window(&self, rows: u64) -> u64 {
        rows.saturating_sub(self.from).min(self.len.unwrap_or(u64::MAX))
    }
}

impl Stage for Window {
    fn inputs(&self) -> Vec<&dyn Stage> {
        vec![&*self.input]
    }

    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }

    fn num_rows(&self) -> Result<Option<u64>> {
        Ok(self.input.num_rows()?.map(|rows| self.window(rows)))
    }

    fn count(&self) -> Result<u64> {
        Ok(self.window(self.input.count()?))
    }

    fn row_tokens(&self) -> Option<usize> {
        self.inputs().first()?.row_tokens()
    }

    fn is_spooled(&self) -> bool {
        self.input.is_spooled()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let rest = self.len.map(|len| len.saturating_sub(from));
        if rest == Some(0) {
            return Ok(Box::new(std::iter::empty()));
        }
        let batches = self.input.read(epoch, self.from.saturating_add(from))?;
        Ok(match rest {
            Some(rest) => limit_rows(batches, rest),
            None => batches,
        })
    }

    fn identity(&self) -> Result<Option<String>> {
        identity_of(&self.inputs(), &format!("{} {:?}", self.from, self.len))
    }

    fn describe(&self) -> String {
        let input = self.input.describe();
        match self.len {
            Some(n) => format!("{input} -> take({n})"),
            None => format!("{input} -> skip({})", self.from),
        }
    }
}
