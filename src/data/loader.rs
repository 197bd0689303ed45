//! `Loader`: micro batches for one rank, and the place in the data.
//!
//! The rows of an epoch are cut into blocks of `micro_batch_size * world_size`; rank r takes the
//! r-th part of each block. All ranks thus agree on one global order, which does not depend on
//! their number, and the place in it is one row number. Every rank yields equally many batches:
//! where the last block is short, ranks fill up with rows that have no target.

use std::{collections::VecDeque, rc::Rc, time::Instant};

use arrow::{array::RecordBatch, compute::concat_batches};
use serde::{Deserialize, Serialize};

use super::{
    batch::{Batch, Device, Place, assemble},
    stage::{Batches, Stage},
    tokens::require_tokens,
};
use crate::error::{Code, Error, Result};

/// How a dataset is cut into batches, and for which rank.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Rows in a batch of one rank.
    pub micro_batch_size: usize,
    /// How often the data is gone through; `None` for without end.
    pub epochs: Option<u64>,
    /// Whether a last block that is not full is left out.
    pub drop_last: bool,
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

/// Micro batches of one rank, in order; an iterator that knows its place.
pub struct Loader {
    rows: Rc<dyn Stage>,
    options: LoaderOptions,
    state: LoaderState,
    /// The open epoch; `None` before the first batch and after a restore.
    stream: Option<Stream>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loader({}, {:?})", self.describe(), self.state)
    }
}

impl Loader {
    pub(super) fn new(rows: Rc<dyn Stage>, options: LoaderOptions) -> Result<Self> {
        let LoaderOptions { micro_batch_size, rank, world_size, .. } = options;
        if micro_batch_size == 0 {
            let e = Error::new(Code::BadValue, "micro_batch_size must be 1 or more, found 0");
            return Err(e.option("micro_batch_size"));
        }
        if rank >= world_size {
            bail!(Code::BadValue, "rank {rank} does not exist among {world_size} processes");
        }
        require_tokens(&rows.schema(), "loader(...)")?;
        Ok(Self { rows, options, state: LoaderState::default(), stream: None })
    }

    /// The next batch, or `None` after the last epoch.
    ///
    /// # Errors
    /// Whatever reading the data fails with; rows that make no batch. The place stays where it was.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let began = Instant::now();
        let mut batch = self.advance();
        match &mut batch {
            Ok(Some(batch)) => batch.load_time = began.elapsed(),
            Ok(None) => {}
            Err(_) => self.stream = None,
        }
        batch
    }

    /// The place of the next batch.
    pub fn state(&self) -> LoaderState {
        self.state
    }

    /// Goes to a place that [`Loader::state`] gave, perhaps with another number of ranks.
    ///
    /// # Errors
    /// The dataset has fewer rows than were read from it before.
    pub fn restore(&mut self, state: LoaderState) -> Result<()> {
        if let Some(rows) = self.rows.num_rows()?
            && state.row > rows
        {
            return Err(Error::new(
                Code::Data,
                format!("cannot go on at row {}: the dataset has {rows} rows", state.row),
            )
            .hint("the data is not the one that the checkpoint was made with"));
        }
        self.state = state;
        self.stream = None;
        Ok(())
    }

    /// The options the loader was made with.
    pub fn options(&self) -> &LoaderOptions {
        &self.options
    }

    /// Where the rows come from, in one line.
    pub fn describe(&self) -> String {
        self.rows.describe()
    }

    /// The number of batches in one epoch, where it can be known without going through the data
    /// only for this; a shuffled dataset is spooled now, which its first batch would do anyway.
    ///
    /// # Errors
    /// Whatever reading the data fails with.
    pub fn batches_per_epoch(&self) -> Result<Option<u64>> {
        let rows = match self.rows.num_rows()? {
            None if self.rows.is_spooled() => Some(self.rows.count()?),
            known => known,
        };
        let block = self.block() as u64;
        Ok(rows.map(|rows| match self.options.drop_last {
            true => rows / block,
            false => rows.div_ceil(block),
        }))
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
                None => {
                    let batches = self.rows.read(epoch, row)?;
                    self.stream.insert(Stream { batches, ready: VecDeque::new(), rows: 0 })
                }
            };
            let block = stream.next_rows(size)?;
            match block {
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
        let from = (rank * micro_batch_size).min(block.num_rows());
        let len = micro_batch_size.min(block.num_rows() - from);
        let place = Place {
            epoch: self.state.epoch,
            first_row: self.state.row + from as u64,
            len: if world_size == 1 { len } else { micro_batch_size },
            device,
        };
        assemble(block.slice(from, len), &block.slice(0, 1), &place)
    }

    fn no_batch(&self, rows: usize) -> Error {
        let from = self.rows.describe();
        if rows == 0 {
            return Error::new(Code::Data, format!("the dataset has no rows: {from}"));
        }
        let block = self.block();
        let message =
            format!("the dataset has {rows} rows, too few for one batch of {block}: {from}");
        Error::new(Code::Data, message)
            .hint("set drop_last: false, or a smaller micro_batch_size")
            .option("drop_last")
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

/// Batches of any size, handed out as batches of the size asked for.
struct Stream {
    batches: Batches,
    ready: VecDeque<RecordBatch>,
    /// Rows in `ready`.
    rows: usize,
}

impl Stream {
    /// The next `n` rows, fewer at the end, `None` after it.
    fn next_rows(&mut self, n: usize) -> Result<Option<RecordBatch>> {
        while self.rows < n {
            let Some(batch) = self.batches.next().transpose()? else { break };
            self.rows += batch.num_rows();
            self.ready.push_back(batch);
        }
        let mut parts = Vec::new();
        let mut left = n;
        while left > 0 {
            let Some(batch) = self.ready.pop_front() else { break };
            let rows = batch.num_rows();
            if rows > left {
                self.ready.push_front(batch.slice(left, rows - left));
            }
            if rows > 0 {
                parts.push(batch.slice(0, rows.min(left)));
            }
            left = left.saturating_sub(rows);
        }
        self.rows -= n - left;
        let Some(first) = parts.first() else { return Ok(None) };
        if parts.len() == 1 {
            return Ok(parts.pop());
        }
        let joined = concat_batches(&first.schema(), &parts);
        joined
            .map(Some)
            .map_err(|e| Error::new(Code::Internal, format!("loader: {e}")).caused_by(e))
    }
}
