//! `pack`: the tokens of all rows, end to end, cut into rows of equal length.
//!
//! This is `group_texts` of Hugging Face's language-modelling examples: no padding, no token
//! wasted but the remainder at the very end. Tokens whose attention mask is 0 are padding and are
//! left out. A `labels` column is cut along with the ids.

use std::{collections::VecDeque, iter::repeat_n, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};

use super::{
    row_checks::{check_labels, check_mask},
    stage::{Batches, Stage, skip_rows},
    tokens::{self, ATTENTION_MASK, INPUT_IDS, LABELS, TokenLists, require_tokens},
};
use crate::error::{Code, Error, Result};

/// Rows of exactly `seq_len` tokens.
pub(super) struct Pack {
    input: Arc<dyn Stage>,
    seq_len: usize,
    schema: SchemaRef,
}

impl Pack {
    pub(super) fn new(input: Arc<dyn Stage>, seq_len: usize) -> Result<Self> {
        if seq_len == 0 || seq_len > i32::MAX as usize {
            bail!(
                Code::BadValue,
                "pack({seq_len}): the number of tokens in a row must be 1 or more"
            );
        }
        let schema = input.schema();
        require_tokens(&schema, "pack(seq_len)")?;
        tokens::check_joinable(&schema)?;
        let mut fields = vec![tokens::int32_list(INPUT_IDS)];
        if let Ok(labels) = schema.field_with_name(LABELS) {
            tokens::check_type(labels)?;
            fields.push(tokens::int32_list(LABELS));
        }
        Ok(Self { input, seq_len, schema: Arc::new(Schema::new(fields)) })
    }
}

impl Stage for Pack {
    fn inputs(&self) -> Vec<&dyn Stage> {
        vec![&*self.input]
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let packer = Packer {
            input: self.input.read(epoch, 0)?,
            schema: self.schema.clone(),
            seq_len: self.seq_len,
            ids: VecDeque::new(),
            labels: VecDeque::new(),
            row: 0,
        };
        Ok(skip_rows(Box::new(packer), from))
    }

    fn row_tokens(&self) -> Option<usize> {
        Some(self.seq_len)
    }

    fn describe(&self) -> String {
        format!("{} -> pack({})", self.input.describe(), self.seq_len)
    }
}

struct Packer {
    input: Batches,
    schema: SchemaRef,
    seq_len: usize,
    ids: VecDeque<i32>,
    labels: VecDeque<i32>,
    /// The row of the input that comes next, for messages.
    row: u64,
}

impl Iterator for Packer {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.ids.len() < self.seq_len {
            // The remainder in `ids` at the end is dropped.
            if let Err(e) = self.input.next()?.and_then(|batch| self.push(&batch)) {
                return Some(Err(e));
            }
        }
        Some(self.cut())
    }
}

impl Packer {
    fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let ids = TokenLists::of(batch, INPUT_IDS)?;
        let ids = ids.ok_or_else(|| Error::new(Code::Internal, "a batch lost its input_ids"))?;
        let mask = TokenLists::of(batch, ATTENTION_MASK)?;
        let labels = TokenLists::of(batch, LABELS)?;
        for row in 0..ids.len() {
            let mask = mask.as_ref().map(|m| m.row(row));
            self.push_row(ids.row(row), mask, labels.as_ref().map(|l| l.row(row)))?;
            self.row += 1;
        }
        Ok(())
    }

    fn push_row(
        &mut self,
        ids: &[i64],
        mask: Option<&[i64]>,
        labels: Option<&[i64]>,
    ) -> Result<()> {
        for (name, other) in [(ATTENTION_MASK, mask), (LABELS, labels)] {
            if let Some(other) = other
                && other.len() != ids.len()
            {
                bail!(
                    Code::Data,
                    "row {}: {name} has {} entries and input_ids {}; expected the same number",
                    self.row,
                    other.len(),
                    ids.len()
                );
            }
        }
        mask.map_or(Ok(()), |mask| check_mask(mask, self.row))?;
        labels.map_or(Ok(()), |labels| check_labels(labels, self.row))?;
        for (i, &id) in ids.iter().enumerate() {
            if mask.is_some_and(|mask| mask[i] == 0) {
                continue;
            }
            self.ids.push_back(self.narrow(id)?);
            if let Some(labels) = labels {
                let label = self.narrow(labels[i])?;
                self.labels.push_back(label);
            }
        }
        Ok(())
    }

    fn narrow(&self, id: i64) -> Result<i32> {
        i32::try_from(id).map_err(|_| {
            Error::new(Code::TokenId, format!("row {}: {id} is no token id", self.row))
        })
    }

    /// All whole rows that the tokens so far make.
    fn cut(&mut self) -> Result<RecordBatch> {
        let rows = self.ids.len() / self.seq_len;
        let tokens = rows * self.seq_len;
        let list = |values: Vec<i32>| tokens::lists(values, repeat_n(self.seq_len, rows));
        let mut columns = vec![list(self.ids.drain(..tokens).collect())];
        if self.schema.fields().len() > 1 {
            columns.push(list(self.labels.drain(..tokens).collect()));
        }
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::new(Code::Internal, format!("pack: {e}")).caused_by(e))
    }
}
