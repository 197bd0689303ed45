//! `Loader`: micro batches for one rank, and the place in the data.
//!
//! The rows of an epoch are cut into blocks of `micro_batch_size * world_size`; rank r takes the
//! r-th part of each block. All ranks thus agree on one global order, which does not depend on
//! their number, and the place in it is one row number. Every rank yields equally many batches:
//! where the last block is short, ranks fill up with rows that have no target.
//!
//! A thread keeps the next batches ready. The place counts those that were handed out, so that nothing
//! of this is seen but the time. Where a function of the recipe stands in the plan, which belongs to
//! the recipe's thread, each batch is made when it is asked for.

use std::{sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};

use super::{
    ahead::Ahead,
    batch::{Batch, Device},
    cutter::Cutter,
    stage::Stage,
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

/// Micro batches of one rank, in order; an iterator that knows its place.
pub struct Loader {
    rows: Arc<dyn Stage>,
    options: LoaderOptions,
    state: LoaderState,
    maker: Option<Maker>,
}

/// What makes the batches; made itself at the first batch, and again after a restore or an error.
enum Maker {
    /// This thread, when one is asked for.
    Here(Cutter),
    /// Another, ahead of time.
    Ahead(Ahead),
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Loader({}, {:?})", self.describe(), self.state)
    }
}

impl Loader {
    pub(super) fn new(rows: Arc<dyn Stage>, options: LoaderOptions) -> Result<Self> {
        let LoaderOptions { micro_batch_size, rank, world_size, .. } = options;
        if micro_batch_size == 0 {
            let e = Error::new(Code::BadValue, "micro_batch_size must be 1 or more, found 0");
            return Err(e.option("micro_batch_size"));
        }
        if rank >= world_size {
            bail!(Code::BadValue, "rank {rank} does not exist among {world_size} processes");
        }
        require_tokens(&rows.schema(), "loader(...)")?;
        Ok(Self { rows, options, state: LoaderState::default(), maker: None })
    }

    /// The next batch, or `None` after the last epoch.
    ///
    /// # Errors
    /// Whatever reading the data fails with; rows that make no batch. The place stays where it was.
    pub fn next_batch(&mut self) -> Result<Option<Batch>> {
        let began = Instant::now();
        let mut batch = self.advance();
        if let Ok(Some(batch)) = &mut batch {
            batch.load_time = began.elapsed();
        }
        batch
    }

    fn advance(&mut self) -> Result<Option<Batch>> {
        if self.options.epochs.is_some_and(|epochs| self.state.epoch >= epochs) {
            return Ok(None);
        }
        let mut maker = match self.maker.take() {
            Some(maker) => maker,
            None => self.maker()?,
        };
        let (made, state) = match &mut maker {
            Maker::Here(cutter) => (cutter.next(), cutter.state()),
            Maker::Ahead(ahead) => ahead.next()?,
        };
        self.state = state;
        match made {
            Ok(Some(batch)) => {
                self.maker = Some(maker);
                Ok(Some(batch))
            }
            // The user may have stopped something else, before this batch was asked for.
            Err(e) if matches!(maker, Maker::Ahead(_)) && e.code() == Code::Interrupted => {
                drop(maker);
                let mut cutter = self.cutter();
                let made = cutter.next();
                self.state = cutter.state();
                made
            }
            made => made,
        }
    }

    fn cutter(&self) -> Cutter {
        Cutter::new(Arc::clone(&self.rows), self.options.clone(), self.state)
    }

    fn maker(&self) -> Result<Maker> {
        if self.options.prefetch_factor == 0 || self.rows.is_local() {
            return Ok(Maker::Here(self.cutter()));
        }
        let (rows, options, state) = (Arc::clone(&self.rows), self.options.clone(), self.state);
        let factor = options.prefetch_factor;
        Ahead::start(move || Cutter::new(rows, options, state), factor).map(Maker::Ahead)
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
        self.maker = None;
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
        let block = (self.options.micro_batch_size * self.options.world_size) as u64;
        Ok(rows.map(|rows| match self.options.drop_last {
            true => rows / block,
            false => rows.div_ceil(block),
        }))
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}
