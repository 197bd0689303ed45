//! `pack` with separate documents: rows of whole texts, in which no token sees another text.
//!
//! Texts are put one behind the other as long as they fit, so that a row is shorter than `seq_len` where
//! the next text does not; a text that is longer than a row is cut into texts, and refused where it has
//! labels of its own. `position_ids` count anew
//! from 0 in each, which is how the model knows them apart. The first token of a text is no target.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};

use super::{
    stage::{Batches, Stage, skip_rows},
    tokens::{self, ATTENTION_MASK, INPUT_IDS, LABELS, POSITION_IDS, TokenLists, require_tokens},
};
use crate::{
    config::options::{option_table, option_words},
    error::{Code, Error, Result},
    tensor::IGNORE_INDEX,
};

option_words! {
    /// How texts stand in one row.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Documents {
        /// End to end: a token sees all that stands before it in its row.
        Joined = "joined",
        /// Whole, and apart: a token sees its own text, and positions begin anew with each.
        Separate = "separate",
    }
}

option_table! {
    /// The option of `pack`.
    #[derive(Debug)]
    pub struct PackOptions {
        /// whether the texts of a row are joined, or no token sees another text
        #[option(default = Documents::Joined)]
        pub documents: Documents,
    }
}

/// Rows that are made before they are handed on.
const ROWS_AT_ONCE: usize = 256;

/// Rows of at most `seq_len` tokens.
pub(super) struct PackDocuments {
    input: Arc<dyn Stage>,
    seq_len: usize,
    schema: SchemaRef,
}

impl PackDocuments {
    pub(super) fn new(input: Arc<dyn Stage>, seq_len: usize) -> Result<Self> {
        if seq_len < 2 || seq_len > i32::MAX as usize {
            let message = format!("pack({seq_len}): a row of documents has 2 tokens or more");
            return Err(Error::new(Code::BadValue, message));
        }
        let schema = input.schema();
        require_tokens(&schema, "pack(seq_len)")?;
        tokens::check_joinable(&schema)?;
        if let Ok(labels) = schema.field_with_name(LABELS) {
            tokens::check_type(labels)?;
        }
        let fields = [INPUT_IDS, LABELS, POSITION_IDS].map(tokens::int32_list);
        Ok(Self { input, seq_len, schema: Arc::new(Schema::new(fields.to_vec())) })
    }
}

impl Stage for PackDocuments {
    fn inputs(&self) -> Vec<&dyn Stage> {
        vec![&*self.input]
    }

    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let packer = Packer {
            input: Some(self.input.read(epoch, 0)?),
            schema: self.schema.clone(),
            seq_len: self.seq_len,
            open: Columns::default(),
            full: Columns::default(),
            row: 0,
        };
        Ok(skip_rows(Box::new(packer), from))
    }

    fn describe(&self) -> String {
        format!("{} -> pack({}, documents: \"separate\")", self.input.describe(), self.seq_len)
    }
}

/// Rows of tokens, one behind the other.
#[derive(Default)]
struct Columns {
    ids: Vec<i32>,
    labels: Vec<i32>,
    positions: Vec<i32>,
    lens: Vec<usize>,
}

struct Packer {
    /// `None` after its end.
    input: Option<Batches>,
    schema: SchemaRef,
    seq_len: usize,
    /// The row that is being filled.
    open: Columns,
    /// Those that are.
    full: Columns,
    /// The row of the input that comes next, for messages.
    row: u64,
}

impl Iterator for Packer {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.full.lens.len() < ROWS_AT_ONCE {
            match self.input.as_mut().and_then(Iterator::next) {
                Some(batch) => {
                    if let Err(e) = batch.and_then(|batch| self.push(&batch)) {
                        return Some(Err(e));
                    }
                }
                None => {
                    self.input = None;
                    self.close();
                    break;
                }
            }
        }
        (!self.full.lens.is_empty()).then(|| self.made())
    }
}

impl Packer {
    fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        let ids = TokenLists::of(batch, INPUT_IDS)?;
        let ids = ids.ok_or_else(|| Error::new(Code::Internal, "a batch lost its input_ids"))?;
        let mask = TokenLists::of(batch, ATTENTION_MASK)?;
        let labels = TokenLists::of(batch, LABELS)?;
        for row in 0..ids.len() {
            let mask = mask.as_ref().map(|mask| mask.row(row));
            let has_answers = labels.is_some();
            let labels = labels.as_ref().map_or(ids.row(row), |labels| labels.row(row));
            let text = self.text(ids.row(row), labels, mask)?;
            if has_answers && text.len() > self.seq_len {
                return Err(self.too_long(text.len()));
            }
            for part in text.chunks(self.seq_len) {
                self.add(part);
            }
            self.row += 1;
        }
        Ok(())
    }

    /// The error of a row whose answers would be cut from their questions.
    fn too_long(&self, tokens: usize) -> Error {
        let message = format!(
            "row {} has {tokens} tokens, and a row of pack({}) has room for {}: its labels would be cut from \
             the text before them",
            self.row, self.seq_len, self.seq_len
        );
        Error::new(Code::Data, message).hint(
            "give `pack` longer rows, or `max_length` and `truncation: true` to .chat or .tokenize",
        )
    }

    /// The tokens of a row with their labels, padding left out.
    fn text(&self, ids: &[i64], labels: &[i64], mask: Option<&[i64]>) -> Result<Vec<(i32, i32)>> {
        let row = self.row;
        if labels.len() != ids.len() || mask.is_some_and(|mask| mask.len() != ids.len()) {
            let message = format!(
                "row {row}: input_ids has {} entries, and labels or attention_mask another number",
                ids.len()
            );
            return Err(Error::new(Code::Data, message));
        }
        let narrow = |id: i64| {
            let wrong = || Error::new(Code::TokenId, format!("row {row}: {id} is no token id"));
            i32::try_from(id).map_err(|_| wrong())
        };
        let is_real = |i: usize| mask.is_none_or(|mask| mask[i] != 0);
        let tokens = (0..ids.len()).filter(|&i| is_real(i));
        tokens.map(|i| Ok((narrow(ids[i])?, narrow(labels[i])?))).collect()
    }

    fn add(&mut self, text: &[(i32, i32)]) {
        if self.open.ids.len() + text.len() > self.seq_len {
            self.close();
        }
        for (position, &(id, label)) in (0..).zip(text) {
            self.open.ids.push(id);
            self.open.labels.push(if position == 0 { IGNORE_INDEX as i32 } else { label });
            self.open.positions.push(position);
        }
    }

    /// Ends the row that is being filled.
    fn close(&mut self) {
        if self.open.ids.is_empty() {
            return;
        }
        self.full.lens.push(self.open.ids.len());
        self.full.ids.append(&mut self.open.ids);
        self.full.labels.append(&mut self.open.labels);
        self.full.positions.append(&mut self.open.positions);
    }

    fn made(&mut self) -> Result<RecordBatch> {
        let Columns { ids, labels, positions, lens } = std::mem::take(&mut self.full);
        let list = |values: Vec<i32>| tokens::lists(values, lens.iter().copied());
        let columns = vec![list(ids), list(labels), list(positions)];
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::new(Code::Internal, format!("pack: {e}")).caused_by(e))
    }
}
