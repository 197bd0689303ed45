//! The rows of a plan, cut into the batches of one rank.

use std::sync::Arc;

use arrow::{array::RecordBatch, compute::concat_batches};
use serde::{Deserialize, Serialize};

use super::{
    batch::{Batch, BatchPosition, assemble},
    stage::{RowFeed, Stage, no_rows},
};
use crate::{
    error::{Code, Error, Result},
    tensor::Device,
};

/// How a dataset is cut into batches, and for which rank.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Rows in a batch of one rank.
    pub micro_batch_size: usize,
    /// How often the data is gone through; `None` for without end.
    pub epochs: Option<u64>,
    /// Whether a last block that is not full is left out.
    pub drop_last: bool,
    /// The rows of a batch are padded to a multiple of so many tokens.
    pub pad_to_multiple_of: usize,
    /// How many batches a thread keeps ready; 0 is none, and no thread.
    pub prefetch_factor: usize,
    /// This process's number.
    pub rank: usize,
    /// The number of processes.
    pub world_size: usize,
    /// Where the tensors are put.
    pub device: Device,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            micro_batch_size: 1,
            epochs: Some(1),
            drop_last: false,
            pad_to_multiple_of: 1,
            prefetch_factor: 2,
            rank: 0,
            world_size: 1,
            device: Device::Cpu,
        }
    }
}

/// A place in the data: the next row, over all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LoaderState {
    /// The epoch, from 0.
    pub epoch: u64,
    /// Rows of this epoch that were handed out.
    pub row: u64,
}

/// A place in a checkpoint, with what tells its data from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPlace {
    /// The place.
    #[serde(flatten)]
    pub state: LoaderState,
    /// The fingerprint of the data and of what is done to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
}

/// Makes one batch after another.
pub(super) struct Batcher {
    rows: Arc<dyn Stage>,
    options: LoaderOptions,
    state: LoaderState,
    /// The open epoch; `None` before the first batch and after an error.
    stream: Option<RowFeed>,
}

impl Batcher {
    /// Begins at the place `state`.
    pub(super) fn new(rows: Arc<dyn Stage>, options: LoaderOptions, state: LoaderState) -> Self {
        Self { rows, options, state, stream: None }
    }

    /// The place of the next batch.
    pub(super) fn state(&self) -> LoaderState {
        self.state
    }

    /// The next batch, or `None` after the last epoch; after an error the same one again.
    pub(super) fn next(&mut self) -> Result<Option<Batch>> {
        let batch = self.advance();
        if batch.is_err() {
            self.stream = None;
        }
        batch
    }

    /// Rows of all ranks' batches together.
    fn block(&self) -> usize {
        self.options.micro_batch_size * self.options.world_size
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        loop {
            let LoaderState { epoch, row } = self.state;
            if self.options.epochs.is_some_and(|epochs| epoch >= epochs) {
                return Ok(None);
            }
            let size = self.block();
            let stream = match &mut self.stream {
                Some(stream) => stream,
                none => none.insert(RowFeed::new(self.rows.read(epoch, row)?)),
            };
            match joined(stream.next_rows(size)?)? {
                Some(block) if block.num_rows() == size || !self.options.drop_last => {
                    let batch = self.cut(&block)?;
                    self.state.row += block.num_rows() as u64;
                    return Ok(Some(batch));
                }
                rest => {
                    if row == 0 {
                        return Err(self.no_batch(rest.map_or(0, |rest| rest.num_rows())));
                    }
                    self.state = LoaderState { epoch: epoch + 1, row: 0 };
                    self.stream = None;
                }
            }
        }
    }

    /// This rank's part of a block.
    fn cut(&self, block: &RecordBatch) -> Result<Batch> {
        let LoaderOptions { micro_batch_size, rank, world_size, device, .. } = self.options;
        let pad_to_multiple_of = self.options.pad_to_multiple_of;
        let from = (rank * micro_batch_size).min(block.num_rows());
        let len = micro_batch_size.min(block.num_rows() - from);
        let place = BatchPosition {
            epoch: self.state.epoch,
            first_row: self.state.row + from as u64,
            len: if world_size == 1 { len } else { micro_batch_size },
            pad_to_multiple_of,
            device,
        };
        assemble(block.slice(from, len), &block.slice(0, 1), &place)
    }

    fn no_batch(&self, rows: usize) -> Error {
        let from = self.rows.describe();
        if rows == 0 {
            return no_rows(&from);
        }
        let block = self.block();
        let message =
            format!("the dataset has {rows} rows, too few for one batch of {block}: {from}");
        Error::new(Code::Data, message)
            .hint("set drop_last: false, or a smaller micro_batch_size")
            .option("drop_last")
    }
}

/// Parts of a block as one batch.
fn joined(mut parts: Vec<RecordBatch>) -> Result<Option<RecordBatch>> {
    if parts.len() < 2 {
        return Ok(parts.pop());
    }
    let joined = concat_batches(&parts[0].schema(), &parts);
    joined.map(Some).map_err(|e| Error::new(Code::Internal, format!("loader: {e}")).caused_by(e))
}
