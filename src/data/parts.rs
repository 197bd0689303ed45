//! Datasets that become one: what they must have in common.

use std::sync::Arc;

use arrow::{array::RecordBatch, datatypes::SchemaRef};

use super::{
    stage::{Batches, Stage},
    tokenizer::Tokenizer,
};
use crate::error::{Code, Error, Result};

/// Datasets with the same columns, of text or of one tokenizer's tokens.
#[derive(Clone)]
pub(super) struct Parts(Arc<[Arc<dyn Stage>]>);

impl Parts {
    /// Takes datasets together for the function `what`, which errors name.
    ///
    /// # Errors
    /// One has other columns than the first, or another tokenizer's tokens.
    pub(super) fn new(what: &str, parts: Vec<Arc<dyn Stage>>) -> Result<Self> {
        let columns = |part: &Arc<dyn Stage>| {
            let schema = part.schema();
            let all = schema.fields().iter().map(|f| format!("{}: {}", f.name(), f.data_type()));
            all.collect::<Vec<_>>().join(", ")
        };
        let Some((first, others)) = parts.split_first() else {
            return Err(Error::new(Code::BadValue, format!("{what}: there is no dataset")));
        };
        let expected = columns(first);
        for part in others {
            let found = columns(part);
            if found != expected {
                let message = format!(
                    "{what}: {} has other columns than the first dataset: expected {expected}; \
                     found {found}",
                    part.describe()
                );
                return Err(Error::new(Code::Data, message).hint(
                    "bring them to the same columns, with .select(...), .rename(...) or .map(...)",
                ));
            }
            if !is_same(first.tokenizer(), part.tokenizer())? {
                let message = format!(
                    "{what}: {} has tokens of another tokenizer than the first dataset",
                    part.describe()
                );
                return Err(Error::new(Code::Data, message));
            }
        }
        Ok(Self(parts.into()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<dyn Stage>> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.0[0].schema()
    }

    pub(super) fn describe(&self, between: &str) -> String {
        let parts: Vec<String> = self.iter().map(|part| part.describe()).collect();
        parts.join(between)
    }

    /// The rows of a part from one on. Metadata of columns may differ, and the first dataset's holds.
    pub(super) fn read(&self, part: usize, epoch: u64, from: u64) -> Result<Batches> {
        let schema = self.schema();
        let with_schema = move |batch: Result<RecordBatch>| {
            let renamed = batch?.with_schema(schema.clone());
            renamed.map_err(|e| Error::new(Code::Data, e.to_string()).caused_by(e))
        };
        Ok(Box::new(self.0[part].read(epoch, from)?.map(with_schema)))
    }

    pub(super) fn count(&self, part: usize) -> Result<u64> {
        self.0[part].count()
    }
}

fn is_same(a: Option<Arc<Tokenizer>>, b: Option<Arc<Tokenizer>>) -> Result<bool> {
    Ok(match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(&a, &b) || a.hash()? == b.hash()?,
        (None, None) => true,
        _ => false,
    })
}
