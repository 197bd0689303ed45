//! `Batch`: the rows of one micro batch as tensors.
//!
//! Labels are the input ids themselves, as in Hugging Face: the model shifts them by one. A label
//! of [`IGNORE_INDEX`] is no target; all padding has it, so that padding never counts in a loss.

use std::time::Duration;

pub(super) use crate::tensor::Device;
use crate::tensor::{IGNORE_INDEX, Tensor, to_device};
use arrow::array::RecordBatch;

use super::{
    batch_rows::BatchRows,
    facts::{Facts, HostRows},
    rows::{Row, to_rows},
    tokens::{ATTENTION_MASK, INPUT_IDS, LABELS, TokenLists, pad_to_longest},
};
use crate::error::{Code, Error, Result};

/// One micro batch of one rank; B rows, T tokens.
#[derive(Debug)]
pub struct Batch {
    /// The epoch that the rows belong to.
    pub epoch: u64,
    /// The place of the batch's first row among all rows of the epoch, over all ranks.
    pub first_row: u64,
    /// What the loader took to make the batch, reading and tokenizing included.
    pub load_time: Duration,
    contents: Contents,
    rows: RecordBatch,
}

impl Batch {
    /// Token ids, int64 `[B, T]`.
    pub fn input_ids(&self) -> &Tensor {
        &self.contents.input_ids
    }

    /// Targets, not shifted, int64 `[B, T]`; [`IGNORE_INDEX`] where there is none.
    pub fn labels(&self) -> &Tensor {
        &self.contents.labels
    }

    /// 1 for a real token, 0 for padding, int64 `[B, T]`.
    pub fn attention_mask(&self) -> &Tensor {
        &self.contents.attention_mask
    }

    /// The token that each position should predict.
    ///
    /// # Errors
    /// As [`Batch::facts`].
    pub fn targets(&self) -> Result<TargetTensors> {
        let of = |contents: &Contents| {
            let TargetTensors { ids, positions, scored } = &contents.targets;
            TargetTensors {
                ids: ids.shallow_clone(),
                positions: positions.shallow_clone(),
                scored: scored.shallow_clone(),
            }
        };
        match self.contents.is_changed() {
            false => Ok(of(&self.contents)),
            true => Ok(of(&self.contents.again()?)),
        }
    }

    /// The contents of the tensors, counted when they were made. Where one was changed in place
    /// since, they are counted again, and the host waits for the device.
    ///
    /// # Errors
    /// libtorch cannot bring changed tensors to the host.
    pub fn facts(&self) -> Result<Facts> {
        match self.contents.is_changed() {
            false => Ok(self.contents.facts),
            true => Ok(self.contents.again()?.facts),
        }
    }

    /// The rows that the batch was made of, for looking at a bad one. Rows that only fill up the
    /// last batch of a rank are not among them.
    ///
    /// # Errors
    /// A column that has no JSON form.
    pub fn rows(&self) -> Result<Vec<Row>> {
        to_rows(&self.rows)
    }

    /// The same rows as they came, to be written to a file.
    pub fn source(&self) -> BatchRows {
        BatchRows { epoch: self.epoch, first_row: self.first_row, rows: self.rows.clone() }
    }
}

/// The token that each position of a batch should predict: the labels, shifted by one. All int64.
#[derive(Debug)]
pub struct TargetTensors {
    /// `[B, T]`, [`IGNORE_INDEX`] where there is none.
    pub ids: Tensor,
    /// The positions that have one, among B times T.
    pub positions: Tensor,
    /// The ids there.
    pub scored: Tensor,
}

/// The tensors of a batch, parts of one that travelled to the device in one copy, and what is known
/// of them.
#[derive(Debug)]
struct Contents {
    input_ids: Tensor,
    labels: Tensor,
    attention_mask: Tensor,
    targets: TargetTensors,
    facts: Facts,
}

impl Contents {
    fn new(rows: &HostRows, device: Device) -> Result<Self> {
        let target_ids = rows.target_ids();
        let facts = rows.facts(&target_ids);
        let (positions, scored) = HostRows::scored(&target_ids);
        let (numel, len) = (rows.input_ids.len() as i64, rows.len as i64);
        let all = [&rows.input_ids[..], &rows.labels, &rows.attention_mask, &target_ids];
        let all = [all.concat(), positions, scored].concat();
        let all = to_device(&all, &[all.len() as i64], device)?;
        // As `data`: a change of one part in place is no change of the others.
        let part = |i| -> Result<Tensor> {
            Ok(all.f_narrow(0, i * numel, numel)?.f_view([numel / len, len])?.f_data()?)
        };
        Ok(Self {
            input_ids: part(0)?,
            labels: part(1)?,
            attention_mask: part(2)?,
            targets: TargetTensors {
                ids: part(3)?,
                positions: all.f_narrow(0, 4 * numel, facts.targets)?,
                scored: all.f_narrow(0, 4 * numel + facts.targets, facts.targets)?,
            },
            facts,
        })
    }

    /// Whether a tensor was changed in place, which libtorch counts: a recipe may do that with what
    /// it is handed.
    fn is_changed(&self) -> bool {
        let parts = [&self.input_ids, &self.labels, &self.attention_mask, &self.targets.ids];
        parts.iter().any(|part| part.f_internal_version().ok() != Some(0))
    }

    /// The contents made anew from what the tensors hold now.
    fn again(&self) -> Result<Self> {
        let values =
            |tensor: &Tensor| -> Result<Vec<i64>> { Ok(Vec::try_from(&tensor.f_reshape([-1])?)?) };
        let rows = HostRows {
            len: self.input_ids.size()[1] as usize,
            input_ids: values(&self.input_ids)?,
            labels: values(&self.labels)?,
            attention_mask: values(&self.attention_mask)?,
        };
        Self::new(&rows, self.input_ids.device())
    }
}

/// Where the rows of a batch stand, and how many a batch must have.
pub(super) struct Place {
    pub(super) epoch: u64,
    pub(super) first_row: u64,
    /// Rows in the batch; filled up with rows that have no target where there are fewer.
    pub(super) len: usize,
    pub(super) device: Device,
}

/// Makes the tensors of `rows`. Where they are too few, `filler` (one row) is repeated without
/// targets: real text keeps every operation of the model well defined, at no effect on the loss.
pub(super) fn assemble(rows: RecordBatch, filler: &RecordBatch, place: &Place) -> Result<Batch> {
    let mut table = Table::default();
    table.push(&rows, place.first_row)?;
    while table.rows < place.len {
        let from = table.labels.len();
        table.push(filler, place.first_row)?;
        table.forget_targets(from);
    }
    let schema = rows.schema();
    let pad_id = schema.field_with_name(INPUT_IDS).ok().and_then(pad_to_longest);
    table.even_out(pad_id, place.first_row)?;
    let contents = Contents::new(&table.finish(), place.device).map_err(|e| {
        let message = format!("cannot put a batch on {:?}: {}", place.device, e.message());
        Error::new(e.code(), message)
    })?;
    let (epoch, first_row) = (place.epoch, place.first_row);
    Ok(Batch { epoch, first_row, load_time: Duration::ZERO, contents, rows })
}

/// The rows of a batch before they are tensors.
#[derive(Default)]
struct Table {
    rows: usize,
    input_ids: Vec<Vec<i64>>,
    labels: Vec<Vec<i64>>,
    attention_mask: Vec<Vec<i64>>,
}

impl Table {
    fn push(&mut self, batch: &RecordBatch, first_row: u64) -> Result<()> {
        let ids = TokenLists::of(batch, INPUT_IDS)?;
        let ids = ids.ok_or_else(|| Error::new(Code::Internal, "a batch lost its input_ids"))?;
        let labels = TokenLists::of(batch, LABELS)?;
        let mask = TokenLists::of(batch, ATTENTION_MASK)?;
        for row in 0..ids.len() {
            let number = first_row + row as u64;
            let ids = check_ids(ids.row(row), number)?;
            let mask = match &mask {
                Some(mask) => same_length(mask.row(row), ids, ATTENTION_MASK, number)?.to_vec(),
                None => vec![1; ids.len()],
            };
            if !mask.contains(&1) {
                let message = format!("row {number} has no tokens");
                return Err(Error::new(Code::Data, message).hint(
                    "remove empty rows with .filter before .tokenize, or join rows with .pack",
                ));
            }
            let labels = match &labels {
                Some(labels) => same_length(labels.row(row), ids, LABELS, number)?,
                None => ids,
            };
            let target =
                |(&label, &real): (&i64, &i64)| if real == 0 { IGNORE_INDEX } else { label };
            self.labels.push(labels.iter().zip(&mask).map(target).collect());
            self.input_ids.push(ids.to_vec());
            self.attention_mask.push(mask);
            self.rows += 1;
        }
        Ok(())
    }

    fn forget_targets(&mut self, from: usize) {
        self.labels[from..].iter_mut().flatten().for_each(|label| *label = IGNORE_INDEX);
    }

    /// Brings all rows to the length of the longest, if they may be padded.
    fn even_out(&mut self, pad_id: Option<i64>, first_row: u64) -> Result<()> {
        let longest = self.input_ids.iter().map(Vec::len).max().unwrap_or(0);
        let Some(short) = self.input_ids.iter().position(|row| row.len() != longest) else {
            return Ok(());
        };
        let Some(pad_id) = pad_id else {
            let (len, row) = (self.input_ids[short].len(), first_row + short as u64);
            let message = format!(
                "row {row} has {len} tokens, and another of its batch has {longest}: the rows of a \
                 batch must have one length"
            );
            return Err(Error::new(Code::Data, message).hint(
                "call .pack(seq_len) before .loader, or .tokenize with padding: \"longest\"",
            ));
        };
        self.input_ids.iter_mut().for_each(|row| row.resize(longest, pad_id));
        self.labels.iter_mut().for_each(|row| row.resize(longest, IGNORE_INDEX));
        self.attention_mask.iter_mut().for_each(|row| row.resize(longest, 0));
        Ok(())
    }

    /// The rows, which have one length.
    fn finish(self) -> HostRows {
        let len = self.input_ids.first().map_or(0, Vec::len);
        let [input_ids, labels, attention_mask] =
            [self.input_ids, self.labels, self.attention_mask].map(|rows| rows.concat());
        HostRows { len, input_ids, labels, attention_mask }
    }
}

fn check_ids(ids: &[i64], row: u64) -> Result<&[i64]> {
    match ids.iter().position(|&id| id < 0) {
        Some(at) => bail!(
            Code::TokenId,
            "row {row}: input_ids[{at}] is {}; a token id is 0 or more",
            ids[at]
        ),
        None => Ok(ids),
    }
}

fn same_length<'a>(other: &'a [i64], ids: &[i64], name: &str, row: u64) -> Result<&'a [i64]> {
    if other.len() != ids.len() {
        bail!(
            Code::Data,
            "row {row}: {name} has {} entries and input_ids {}; expected the same number",
            other.len(),
            ids.len()
        );
    }
    Ok(other)
}

/// A batch of these token ids, for tests of what takes batches.
#[cfg(test)]
pub(crate) fn batch_of(rows: &[Vec<i64>]) -> Batch {
    use super::{Dataset, LoaderOptions, OpenOptions};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let lines = rows.iter().map(|ids| serde_json::json!({ "input_ids": ids }).to_string());
    std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let dataset = Dataset::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap();
    let options = LoaderOptions { micro_batch_size: rows.len(), ..LoaderOptions::default() };
    dataset.loader(options).unwrap().next_batch().unwrap().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_follows_a_change_in_place() {
        let batch = batch_of(&[vec![5, 6, 7], vec![1, 2, 3]]);
        let targets = || Vec::<Vec<i64>>::try_from(&batch.targets().unwrap().ids).unwrap();
        let made =
            Facts { tokens: 6, targets: 4, lowest_id: 1, highest_id: 7, is_left_padded: false };
        assert_eq!(batch.facts().unwrap(), made);
        assert_eq!(targets(), [[6, 7, -100], [2, 3, -100]]);
        let scored = || {
            let targets = batch.targets().unwrap();
            [targets.positions, targets.scored].map(|x| Vec::<i64>::try_from(&x).unwrap())
        };
        assert_eq!(scored(), [[0, 1, 3, 4], [6, 7, 2, 3]]);
        let _ = batch.labels().get(0).get(1).fill_(IGNORE_INDEX);
        assert_eq!(batch.facts().unwrap(), Facts { targets: 3, ..made });
        assert_eq!(targets(), [[-100, 7, -100], [2, 3, -100]]);
        assert_eq!(scored(), [[1, 3, 4], [7, 2, 3]]);
        let _ = batch.attention_mask().get(1).get(0).fill_(0);
        let _ = batch.input_ids().get(1).get(0).fill_(90);
        let padded =
            Facts { tokens: 5, targets: 3, lowest_id: 2, highest_id: 90, is_left_padded: true };
        assert_eq!(batch.facts().unwrap(), padded);
    }

    /// An operation that saved one part for its gradient must not be disturbed.
    #[test]
    fn a_change_of_one_tensor_is_none_of_the_others() {
        let batch = batch_of(&[vec![5, 6, 7]]);
        let _ = batch.labels().shallow_clone().fill_(0);
        assert_eq!(batch.input_ids().internal_version(), 0);
        assert_eq!(Vec::<Vec<i64>>::try_from(batch.input_ids()).unwrap(), [[5, 6, 7]]);
    }
}
