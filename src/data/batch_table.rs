//! The rows of a batch before they are tensors: checked, filled up and brought to one length.

use arrow::array::RecordBatch;

use super::{
    batch_stats::HostRows,
    row_checks::{check_ids, check_labels, check_mask, same_length},
    tokens::{ATTENTION_MASK, INPUT_IDS, LABELS, POSITION_IDS, TokenLists, have_answers},
};
use crate::{
    error::{Code, Error, Result},
    tensor::IGNORE_INDEX,
};

/// The rows of a batch before they are tensors.
#[derive(Default)]
pub(super) struct Table {
    pub(super) rows: usize,
    /// Whether a row has another number of labels than of tokens.
    has_pairs: bool,
    /// Whether the rows have labels of their own.
    has_labels: bool,
    input_ids: Vec<Vec<i64>>,
    labels: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
    /// The tokens of each text of a row; none where rows have no positions.
    documents: Vec<Vec<i64>>,
}

impl Table {
    pub(super) fn push(&mut self, batch: &RecordBatch, first_row: u64) -> Result<()> {
        let ids = TokenLists::of(batch, INPUT_IDS)?;
        let ids = ids.ok_or_else(|| Error::new(Code::Internal, "a batch lost its input_ids"))?;
        let labels = TokenLists::of(batch, LABELS)?;
        let mask = TokenLists::of(batch, ATTENTION_MASK)?;
        let positions = TokenLists::of(batch, POSITION_IDS)?;
        let are_answers = have_answers(&batch.schema());
        for row in 0..ids.len() {
            let number = first_row + row as u64;
            let ids = check_ids(ids.row(row), number)?;
            let mask = match &mask {
                Some(mask) => same_length(mask.row(row), ids, ATTENTION_MASK, number)?.to_vec(),
                None => vec![1; ids.len()],
            };
            check_mask(&mask, number)?;
            if let Some(positions) = &positions {
                let positions = same_length(positions.row(row), ids, POSITION_IDS, number)?;
                self.documents.push(texts(positions, number)?);
            }
            if !mask.contains(&1) {
                let message = format!("row {number} has no tokens");
                return Err(Error::new(Code::Data, message).hint(
                    "remove empty rows with .filter before .tokenize, or join rows with .pack",
                ));
            }
            self.has_labels |= labels.is_some();
            let labels = labels.as_ref().map_or(ids, |labels| labels.row(row));
            check_labels(labels, number)?;
            let target =
                |(&label, &real): (&i64, &i64)| if real == 0 { IGNORE_INDEX } else { label };
            let is_pair = are_answers || labels.len() != ids.len();
            self.labels.push(match is_pair {
                true => labels.to_vec(),
                false => labels.iter().zip(&mask).map(target).collect(),
            });
            self.has_pairs |= is_pair;
            self.input_ids.push(ids.to_vec());
            self.attention_mask.push(mask);
            self.rows += 1;
        }
        Ok(())
    }

    /// The tokens of each text of each row, and of the padding behind them.
    pub(super) fn documents(&self) -> Option<Vec<Vec<i64>>> {
        let longest = longest_of(&self.input_ids) as i64;
        let whole = |texts: &Vec<i64>| {
            let padding = longest - texts.iter().sum::<i64>();
            texts.iter().copied().chain((padding > 0).then_some(padding)).collect()
        };
        (!self.documents.is_empty()).then(|| self.documents.iter().map(whole).collect())
    }

    pub(super) fn forget_targets(&mut self, from: usize) {
        self.labels[from..].iter_mut().flatten().for_each(|label| *label = IGNORE_INDEX);
    }

    /// Brings all rows to the length of the longest, or to the next multiple that was asked for, if they
    /// may be padded. `first_row` is the number of the first one.
    pub(super) fn even_out(
        &mut self,
        pad_id: Option<i64>,
        multiple: usize,
        first_row: u64,
    ) -> Result<()> {
        let longest = longest_of(&self.input_ids).next_multiple_of(multiple);
        // One at least, so that a batch without any label has a shape.
        let of_labels = match self.has_pairs {
            true => longest_of(&self.labels).max(1).next_multiple_of(multiple),
            false => longest,
        };
        self.labels.iter_mut().for_each(|row| row.resize(of_labels, IGNORE_INDEX));
        let Some(short) = self.input_ids.iter().position(|row| row.len() != longest) else {
            return Ok(());
        };
        let Some(pad_id) = pad_id else {
            let (len, row) = (self.input_ids[short].len(), first_row + short as u64);
            let message = if self.input_ids.iter().all(|row| row.len() == len) {
                format!(
                    "row {row} has {len} tokens, no multiple of `pad_to_multiple_of` {multiple}, and \
                     its dataset has no padding"
                )
            } else {
                format!(
                    "row {row} has {len} tokens, and another of its batch has {longest}: the rows of \
                     a batch must have one length"
                )
            };
            return Err(Error::new(Code::Data, message).hint(
                "call .pack(seq_len) before .loader, or .tokenize with padding: \"longest\"",
            ));
        };
        self.input_ids.iter_mut().for_each(|row| row.resize(longest, pad_id));
        self.attention_mask.iter_mut().for_each(|row| row.resize(longest, 0));
        Ok(())
    }

    /// The rows, which have one length.
    pub(super) fn finish(self) -> HostRows {
        let [len, label_len] = [&self.input_ids, &self.labels].map(|rows| longest_of(rows));
        let (is_aligned, has_labels) = (!self.has_pairs, self.has_labels);
        let [input_ids, labels, attention_mask] =
            [self.input_ids, self.labels, self.attention_mask].map(|rows| rows.concat());
        HostRows { len, label_len, is_aligned, has_labels, input_ids, labels, attention_mask }
    }
}

/// The tokens of each text of a row: positions count up from 0 in each.
fn texts(positions: &[i64], row: u64) -> Result<Vec<i64>> {
    let mut texts: Vec<i64> = Vec::new();
    for (i, &position) in positions.iter().enumerate() {
        match texts.last_mut() {
            Some(last) if position == *last => *last += 1,
            _ if position == 0 => texts.push(1),
            _ => {
                let message = format!(
                    "row {row}: position_ids[{i}] is {position}; expected positions that count up \
                     from 0 in each text"
                );
                return Err(Error::new(Code::Data, message));
            }
        }
    }
    Ok(texts)
}

fn longest_of(rows: &[Vec<i64>]) -> usize {
    rows.iter().map(Vec::len).max().unwrap_or(0)
}
