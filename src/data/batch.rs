//! `Batch`: the rows of one micro batch as tensors.
//!
//! Labels are the input ids themselves, as in Hugging Face: the model shifts them by one. Rows may have
//! labels of their own: as many as tokens for a causal model, any number for one with an encoder. A label
//! of [`IGNORE_INDEX`](crate::tensor::IGNORE_INDEX) is no target; all padding has it, so that padding never
//! counts in a loss.

use std::time::Duration;

use arrow::array::RecordBatch;

use super::{
    batch_rows::BatchRows,
    batch_stats::{BatchStats, HostRows},
    batch_table::Table,
    tokens::{INPUT_IDS, LABELS, pad_to_longest},
    values::{Row, to_rows},
};
use crate::{
    error::{Error, Result},
    tensor::{Device, Tensor, device_name, to_device},
};

/// One micro batch of one rank; B rows, T tokens.
#[derive(Debug)]
pub struct Batch {
    /// The epoch that the rows belong to.
    pub epoch: u64,
    /// The place of the batch's first row among all rows of the epoch, over all ranks.
    pub first_row: u64,
    /// The time that the loader took to make the batch, reading and tokenizing included.
    pub load_time: Duration,
    contents: Contents,
    documents: Option<Vec<Vec<i64>>>,
    rows: RecordBatch,
}

impl Batch {
    /// Token ids, int64 `[B, T]`.
    pub fn input_ids(&self) -> &Tensor {
        &self.contents.input_ids
    }

    /// Targets, not shifted, int64 `[B, T]`, or of another length for a model with an encoder;
    /// [`IGNORE_INDEX`](crate::tensor::IGNORE_INDEX) where there is none.
    pub fn labels(&self) -> &Tensor {
        &self.contents.labels
    }

    /// 1 for a real token, 0 for padding, int64 `[B, T]`.
    pub fn attention_mask(&self) -> &Tensor {
        &self.contents.attention_mask
    }

    /// Of rows of several texts that see nothing of each other: the tokens of each text of each row,
    /// and of the padding behind them.
    pub fn documents(&self) -> Option<&[Vec<i64>]> {
        self.documents.as_deref()
    }

    /// The token that each position should predict.
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

    /// The token that each position of a decoder behind an encoder should predict: the labels as they
    /// are.
    pub fn decoder_targets(&self) -> Result<TargetTensors> {
        match self.contents.is_changed() {
            false => self.contents.decoder_targets(),
            true => self.contents.again()?.decoder_targets(),
        }
    }

    /// The contents of the tensors, counted when they were made. Where one was changed in place
    /// since, they are counted again, and the host waits for the device.
    pub fn stats(&self) -> Result<BatchStats> {
        match self.contents.is_changed() {
            false => Ok(self.contents.stats),
            true => Ok(self.contents.again()?.stats),
        }
    }

    /// The rows that the batch was made of, for looking at a bad one. Rows that only fill up the
    /// last batch of a rank are not among them.
    pub fn rows(&self) -> Result<Vec<Row>> {
        to_rows(&self.rows, self.first_row)
    }

    /// The same rows as they came, to be written to a file.
    pub fn source(&self) -> BatchRows {
        BatchRows { epoch: self.epoch, first_row: self.first_row, rows: self.rows.clone() }
    }
}

/// The token that each position of a batch should predict: the labels, shifted by one. All int64.
#[derive(Debug)]
pub struct TargetTensors {
    /// `[B, T]`, [`IGNORE_INDEX`](crate::tensor::IGNORE_INDEX) where there is none.
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
    /// The labels as they were made.
    host_labels: Vec<i64>,
    stats: BatchStats,
}

impl Contents {
    fn new(rows: &HostRows, device: Device) -> Result<Self> {
        let target_ids = rows.target_ids();
        let stats = rows.stats(&target_ids);
        let (positions, scored) = HostRows::scored(&target_ids);
        let parts = [&rows.input_ids, &rows.attention_mask, &rows.labels, &target_ids];
        let lens = [rows.len, rows.len, rows.label_len, rows.label_len].map(|len| len as i64);
        let all = [parts.map(|part| &part[..]).concat(), positions, scored].concat();
        let all = to_device(&all, &[all.len() as i64], device)?;
        let mut from = 0;
        let mut next = |numel: i64| -> Result<Tensor> {
            from += numel;
            Ok(all.f_narrow(0, from - numel, numel)?)
        };
        // As `data`: a change of one part in place is no change of the others.
        let mut part = |i: usize| -> Result<Tensor> {
            Ok(next(parts[i].len() as i64)?.f_view([-1, lens[i]])?.f_data()?)
        };
        let (input_ids, attention_mask) = (part(0)?, part(1)?);
        let (labels, ids) = (part(2)?, part(3)?);
        let targets =
            TargetTensors { ids, positions: next(stats.targets)?, scored: next(stats.targets)? };
        let host_labels = rows.labels.clone();
        Ok(Self { input_ids, labels, attention_mask, targets, host_labels, stats })
    }

    /// The labels as targets of a decoder.
    fn decoder_targets(&self) -> Result<TargetTensors> {
        let (positions, scored) = HostRows::scored(&self.host_labels);
        let there = |ids: &[i64]| to_device(ids, &[ids.len() as i64], self.labels.device());
        Ok(TargetTensors {
            ids: self.labels.shallow_clone(),
            positions: there(&positions)?,
            scored: there(&scored)?,
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
        let rows = HostRows {
            len: self.input_ids.size()[1] as usize,
            label_len: self.labels.size()[1] as usize,
            is_aligned: self.stats.is_aligned,
            has_labels: self.stats.has_labels,
            input_ids: values(&self.input_ids)?,
            labels: values(&self.labels)?,
            attention_mask: values(&self.attention_mask)?,
        };
        Self::new(&rows, self.input_ids.device())
    }
}

fn values(tensor: &Tensor) -> Result<Vec<i64>> {
    Ok(Vec::try_from(&tensor.f_reshape([-1])?)?)
}

/// Where the rows of a batch stand, and how many a batch must have.
pub(super) struct BatchPosition {
    pub(super) epoch: u64,
    pub(super) first_row: u64,
    /// Rows in the batch; filled up with rows that have no target where there are fewer.
    pub(super) len: usize,
    /// Rows are padded to a multiple of so many tokens.
    pub(super) pad_to_multiple_of: usize,
    pub(super) device: Device,
}

/// Makes the tensors of `rows`. Where they are too few, `filler` (one row) is repeated without
/// targets: real text keeps every operation of the model well defined, at no effect on the loss.
pub(super) fn assemble(
    rows: RecordBatch,
    filler: &RecordBatch,
    place: &BatchPosition,
) -> Result<Batch> {
    let mut table = Table::default();
    table.push(&rows, place.first_row)?;
    while table.rows < place.len {
        let from = table.rows;
        table.push(filler, place.first_row)?;
        table.forget_targets(from);
    }
    let schema = rows.schema();
    let asked = schema.field_with_name(INPUT_IDS).ok().and_then(pad_to_longest);
    // Rows with labels of their own may be padded: what fills them up counts in no loss.
    let pad_id = asked.or(schema.field_with_name(LABELS).ok().map(|_| 0));
    table.even_out(pad_id, place.pad_to_multiple_of, place.first_row)?;
    let documents = table.documents();
    let contents = Contents::new(&table.finish(), place.device).map_err(|e| {
        let message =
            format!("cannot put a batch on {}: {}", device_name(place.device), e.message());
        Error::new(e.code(), message)
    })?;
    let (epoch, first_row) = (place.epoch, place.first_row);
    Ok(Batch { epoch, first_row, load_time: Duration::ZERO, contents, documents, rows })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        data::{DataSource, Dataset, LoaderOptions, OpenOptions},
        tensor::IGNORE_INDEX,
    };

    /// A batch of these token ids, for tests of what takes batches.
    pub(crate) fn batch_of(rows: &[Vec<i64>]) -> Batch {
        batch_of_lines(rows.iter().map(|ids| serde_json::json!({ "input_ids": ids })))
    }

    /// A batch of these token ids with labels of their own.
    fn batch_of_pairs(rows: &[(Vec<i64>, Vec<i64>)]) -> Batch {
        let line = |(ids, labels): &(Vec<i64>, Vec<i64>)| serde_json::json!({ "input_ids": ids, "labels": labels });
        batch_of_lines(rows.iter().map(line))
    }

    fn batch_of_lines(rows: impl Iterator<Item = serde_json::Value>) -> Batch {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let lines: Vec<String> = rows.map(|row| row.to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let dataset =
            Dataset::open(DataSource::unguarded(path.to_str().unwrap()), &OpenOptions::default())
                .unwrap();
        let options = LoaderOptions { micro_batch_size: lines.len(), ..LoaderOptions::default() };
        dataset.loader(options).unwrap().next_batch().unwrap().unwrap()
    }

    #[test]
    fn what_is_known_follows_a_change_in_place() {
        let batch = batch_of(&[vec![5, 6, 7], vec![1, 2, 3]]);
        let targets = || Vec::<Vec<i64>>::try_from(&batch.targets().unwrap().ids).unwrap();
        let made = BatchStats {
            tokens: 6,
            targets: 4,
            lowest_id: 1,
            highest_id: 7,
            is_left_padded: false,
            is_padded: false,
            is_aligned: true,
            has_labels: false,
            labels: 6,
            label_range: (1, 7),
        };
        assert_eq!(batch.stats().unwrap(), made);
        assert_eq!(targets(), [[6, 7, -100], [2, 3, -100]]);
        let scored = || {
            let targets = batch.targets().unwrap();
            [targets.positions, targets.scored].map(|x| Vec::<i64>::try_from(&x).unwrap())
        };
        assert_eq!(scored(), [[0, 1, 3, 4], [6, 7, 2, 3]]);
        let _ = batch.labels().get(0).get(1).fill_(IGNORE_INDEX);
        let fewer = BatchStats { targets: 3, labels: 5, ..made };
        assert_eq!(batch.stats().unwrap(), fewer);
        assert_eq!(targets(), [[-100, 7, -100], [2, 3, -100]]);
        assert_eq!(scored(), [[1, 3, 4], [7, 2, 3]]);
        let _ = batch.attention_mask().get(1).get(0).fill_(0);
        let _ = batch.input_ids().get(1).get(0).fill_(90);
        let padded = BatchStats {
            tokens: 5,
            lowest_id: 2,
            highest_id: 90,
            is_left_padded: true,
            is_padded: true,
            ..fewer
        };
        assert_eq!(batch.stats().unwrap(), padded);
    }

    #[test]
    fn a_decoder_predicts_the_labels_as_they_are() {
        let batch = batch_of_pairs(&[(vec![5, 6, 7], vec![1]), (vec![4], vec![2, 3])]);
        assert_eq!(Vec::<Vec<i64>>::try_from(batch.input_ids()).unwrap(), [[5, 6, 7], [4, 0, 0]]);
        assert_eq!(Vec::<Vec<i64>>::try_from(batch.labels()).unwrap(), [[1, -100], [2, 3]]);
        let targets = batch.decoder_targets().unwrap();
        let of = |x: &Tensor| Vec::<i64>::try_from(x).unwrap();
        assert_eq!((of(&targets.positions), of(&targets.scored)), (vec![0, 2, 3], vec![1, 2, 3]));
        let stats = batch.stats().unwrap();
        assert_eq!((stats.labels, stats.label_range, stats.is_aligned), (3, (1, 3), false));
        let _ = batch.labels().get(1).get(0).fill_(IGNORE_INDEX);
        assert_eq!(of(&batch.decoder_targets().unwrap().scored), [1, 3]);
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
